"""Time on the device of each part of a layer's training step: forward, the input's gradient, the factors' gradients.

    python -m benchmarks.gpu.parts                    writes benchmarks/results/<device>-parts.json
    python -m benchmarks.gpu.parts --table FILE > docs/gpu_h100.md      such a file as a page

The dense layer's parts, the library's products of the weight, and the fused kernels stand side by side, each called
without autograd, interleaved, in bfloat16, with operands from device memory.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from benchmarks.gpu import machine, timing
from benchmarks.gpu.results import Results
from benchmarks.operands import Operands
from benchmarks.suite import SuiteShape, load
from weit_kernels import backends, cuda
from weit_kernels.shapes import FEW_ROWS

PARTS = ("forward", "dx", "factors")
Call = Callable[[], object]


def calls(given: Operands) -> Iterator[tuple[str, str, Call]]:
    """Part, what computes it, and the call; ``factors`` of the dense layer is the gradient of its weight."""
    x, dy, T, S, W, b = given.x, given.dy, given.T, given.S, given.weight, given.b
    out, inn = W.shape
    yield "forward", "dense", lambda: F.linear(x, W, b)
    yield "dx", "dense", lambda: dy @ W
    yield "factors", "dense", lambda: dy.t() @ x
    for path, backend in (("panel", "triton"), ("templates_first", "triton"), ("scalers_first", "triton")):
        if backends.why_not(path, backend, x.device, x.dtype):
            continue
        module, name = backends.module(path, backend), f"{path}/{backend}"
        yield "forward", name, partial(module.linear, x, T, S, b, out)
        yield "dx", name, partial(module.linear_backward, dy, x, T, S, [True, False, False])
        yield "factors", name, partial(module.linear_backward, dy, x, T, S, [False, True, True])
    if cuda.why_not():
        return
    yield "forward", "CUDA kernels", partial(cuda.linear, x, T, S, b, out)
    yield "dx", "CUDA kernels", lambda: cuda.linear(dy, T.mT.contiguous(), S.mT, None, inn)
    if x.shape[0] > FEW_ROWS:
        yield "factors", "CUDA kernels", partial(cuda.factor_grads_kernel, dy, x, T, S, [True, True])


def measure(suites: Sequence[SuiteShape], device: str = "cuda", seconds: float = 0.02) -> dict[str, Any]:
    """Milliseconds by linear shape, part and contender; what raised has its message."""
    clock = timing.CudaClock(flush=True) if device == "cuda" else timing.CpuClock()
    shapes: dict[str, Any] = {}
    for suite in suites:
        given = Operands(suite, device, torch.bfloat16)
        steps: dict[str, Call] = {}
        found: dict[str, dict[str, Any]] = {part: {} for part in PARTS}
        for part, name, call in calls(given):
            try:
                call()
                if device == "cuda":
                    torch.cuda.synchronize()
                steps[f"{part} {name}"] = call
            except Exception as error:
                found[part][name] = timing.describe(error)
        samples = timing.interleaved(steps, clock, seconds * len(steps))
        for key, values in samples.items():
            part, _, name = key.partition(" ")
            found[part][name] = round(1e3 * timing.spread(values)["seconds"], 4)
        shapes[suite.name] = {"limit": {p: suite.limit(p) for p in suite.phases}, **found}
        print(suite.name, json.dumps(found), flush=True)
    return shapes


def table(shapes: dict[str, Any]) -> str:
    """Milliseconds of the dense layer, and how many times as fast the others are."""
    names = list(dict.fromkeys(name for s in shapes.values() for part in PARTS for name in s[part] if name != "dense"))
    lines = [f"| shape | part | dense, ms | {' | '.join(names)} |", f"|---|---|--:|{'--:|' * len(names)}"]
    for shape, parts in shapes.items():
        for part in PARTS:
            dense = parts[part].get("dense")
            if dense is None:
                continue
            ratios = [parts[part].get(name) for name in names]
            cells = [f"{dense / ms:.2f}" if isinstance(ms, float) else "" if ms is None else "failed" for ms in ratios]
            lines.append(f"| {shape} | {part} | {dense:.4f} | {' | '.join(cells)} |")
    return "\n".join(lines)


def page(data: dict[str, Any], name: str) -> str:
    """``docs/gpu_h100.md``."""
    versions = ", ".join(f"{key} {value}" for key, value in data["versions"].items())
    return "\n".join(
        [
            f"# Parts of a training step on {data['device']['name']}",
            "",
            f"Written by `python -m benchmarks.gpu.parts --table benchmarks/results/{name}`: the dense layer's time on the",
            f"device, and how many times as fast the others are. {data['dtype']}; {versions}. `factors` are the",
            "gradients of templates and scalers, for the dense layer that of its weight. [gpu.md](gpu.md) says more.",
            "",
            table(data["shapes"]),
        ]
    )


def main() -> int:
    """Measure and write, or print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--table", type=Path)
    parser.add_argument("--out", type=Path, default=machine.ROOT / "benchmarks" / "results")
    args = parser.parse_args()
    if args.table:
        print(page(json.loads(args.table.read_text()), args.table.name))
        return 0
    if not torch.cuda.is_available():
        parser.error(f"torch {torch.__version__} sees no CUDA device")
    header = machine.header("cuda", "bfloat16", False)
    header["about"] = "written by `python -m benchmarks.gpu.parts`: milliseconds on the device"
    target = args.out / f"{machine.slug(header['device']['name'])}-parts.json"
    Results(target, {**header, "shapes": measure(load("linear", cpu=False))}).save()
    print(target)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
