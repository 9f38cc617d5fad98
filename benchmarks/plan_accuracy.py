"""How often ``weit_kernels.plan`` picks the fastest path and backend on random shapes, and what a wrong choice costs.

    python -m benchmarks.plan_accuracy [--shapes 60] [--seed 1] [--threads 2] [--work 34] [--conv] [--save timings.json]

Whatever can run is forced in turn, interleaved; the fastest of several rounds counts, since what disturbs a round only
adds to it. ``benchmarks.fit_rates`` reads what ``--save`` writes.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Callable
from functools import partial
from pathlib import Path
from time import perf_counter

import torch

import weit_kernels
from benchmarks.allocator import keep_freed_memory
from weit_kernels.backends import Form, pairs, why_not

Shape = dict[str, int]


def _log_uniform(rng: random.Random, low: int, high: int) -> int:
    return round(low * (high / low) ** rng.random())


def random_convs(count: int, seed: int, most_work: int) -> list[Shape]:
    """Convolutions of small images with 1, 9 or 25 taps; ``M`` counts pixels."""
    rng = random.Random(seed)
    draw = partial(_log_uniform, rng)
    shapes: list[Shape] = []
    while len(shapes) < count:
        shape = {"kernel": rng.choice((1, 3, 3, 5)), "B": draw(1, 8), "H": draw(7, 56), "N": draw(1, 16)}
        shape |= {"m": draw(1, 16), "n": draw(1, 16), "p": draw(8, 128), "q": draw(8, 128)}
        shape["M"] = shape["B"] * shape["H"] ** 2
        weights = shape["m"] * shape["p"] * shape["n"] * shape["q"] * shape["kernel"] ** 2
        if 2**12 <= weights <= 2**22 and shape["M"] * weights <= most_work:
            shapes.append(shape)
    return shapes


def random_shapes(count: int, seed: int, most_work: int) -> list[Shape]:
    """Sizes drawn log-uniformly, from one row to thousands, dense layers of 4 k to 16 M weights."""
    draw = partial(_log_uniform, random.Random(seed))
    shapes: list[Shape] = []
    while len(shapes) < count:
        shape = {"M": draw(1, 4096), "N": draw(1, 32), "m": draw(1, 64), "n": draw(1, 64)}
        shape |= {"p": draw(8, 256), "q": draw(8, 256)}
        weights = shape["m"] * shape["p"] * shape["n"] * shape["q"]
        if 2**12 <= weights <= 2**24 and shape["M"] * weights <= most_work:
            shapes.append(shape)
    return shapes


def kernel(shape: Shape) -> tuple[int, ...]:
    """Taps of a convolution, none of a linear layer."""
    return (shape["kernel"],) * 2 if "kernel" in shape else ()


def interleaved(functions: dict[str, Callable[[], object]], seconds: float) -> dict[str, float]:
    """Least time of each function, all of them run in turn for about ``seconds``.

    Each is called once untimed before it is timed: else what follows the path that streams most memory looks slow.
    """
    times: dict[str, list[float]] = {name: [] for name in functions}
    end = perf_counter() + seconds
    while perf_counter() < end or len(next(iter(times.values()))) < 4:
        for name, function in functions.items():
            function()
            start = perf_counter()
            function()
            times[name].append(perf_counter() - start)
    return {name: min(values) for name, values in times.items()}


def measure(shape: Shape, train: bool, seconds: float, dtype: torch.dtype) -> dict[str, float]:
    """Seconds of each path on each backend for one shape."""
    M, N, m, n, p, q = (shape[key] for key in ("M", "N", "m", "n", "p", "q"))
    taps = kernel(shape)
    rows = (shape["B"], n * q, shape["H"], shape["H"]) if taps else (M, n * q)
    x, T, S = (torch.randn(size, dtype=dtype) for size in (rows, (N, p, q, *taps), (N, m, n)))
    dy = torch.randn(rows[0], m * p, *rows[2:], dtype=dtype)
    for tensor in (x, T, S):
        tensor.requires_grad_(train)
    layer = partial(weit_kernels.kron_conv2d, padding=taps[0] // 2) if taps else weit_kernels.kron_linear

    def run(path: str, backend: str) -> Callable[[], object]:
        def step() -> None:
            y = layer(x, T, S, path=path, backend=backend)
            if train:
                torch.autograd.grad(y, (x, T, S), dy)

        return step

    able = [(path, backend) for path, backend in pairs() if not why_not(path, backend, x.device, dtype, Form.of(taps))]
    return interleaved({f"{path} on {backend}": run(path, backend) for path, backend in able}, seconds)


def main() -> None:
    """Measure, compare with the plan, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", type=int, default=60)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=0.2, help="measuring time for each shape and phase")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--dtype", choices=("float32", "float64", "bfloat16"), default="float32")
    parser.add_argument("--work", type=int, default=34, help="most multiply-adds of the dense layer, as a power of two")
    parser.add_argument("--conv", action="store_true", help="convolutions instead of linear layers")
    parser.add_argument("--save", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    keep_freed_memory()
    dtype = getattr(torch, args.dtype)

    rows = []
    shapes = random_convs if args.conv else random_shapes
    for shape in shapes(args.shapes, args.seed, 2**args.work):
        for train in (False, True):
            times = measure(shape, train, args.seconds, dtype)
            scalers, templates = (
                (shape["N"], shape["m"], shape["n"]),
                (shape["N"], shape["p"], shape["q"], *kernel(shape)),
            )
            plan = weit_kernels.plan(shape["M"], scalers, templates, dtype, "cpu", needs_grad=train)
            picked = f"{plan.path} on {plan.backend}"
            rows.append({"shape": shape, "train": train, "seconds": times, "picked": picked})
            loss = times[picked] / min(times.values())
            print(
                f"{'train' if train else 'infer':<6}{shape}  {picked:<25}{loss:5.2f}x of the best  "
                + "  ".join(f"{name} {1e3 * t:.3f} ms" for name, t in times.items()),
                flush=True,
            )
    if args.save:
        args.save.write_text(json.dumps(rows))
    losses = [row["seconds"][row["picked"]] / min(row["seconds"].values()) for row in rows]
    right = sum(loss == 1 for loss in losses) / len(losses)
    print(
        f"\n{len(rows)} choices, {args.dtype}, {args.threads} threads: fastest picked in {right:.0%}; "
        f"within 1.1x of the best in {sum(loss <= 1.1 for loss in losses) / len(losses):.0%}; worst {max(losses):.2f}x"
    )


if __name__ == "__main__":
    main()
