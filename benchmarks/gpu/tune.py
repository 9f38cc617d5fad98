"""Tune the suite's shapes on this machine's GPU and ship the result with the package.

    make gpu-tune

Every shape is run once forward and once as a training step with ``WEIT_TUNE=full``, in a process of its own, so that a
kernel that brings its process down costs one shape. What the tuner found goes to ``weit_kernels/configs/<device>.json``.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu import machine, steps
from benchmarks.gpu.contenders import AUTO, build, suite_shapes
from benchmarks.operands import Operands, make_step

CONFIGS = machine.ROOT / "weit_kernels" / "configs"


def tune_shape(index: int, device: str, dtype: torch.dtype, quick: bool) -> None:
    """Call one shape of the suite with ``auto``; the tuner does the rest."""
    suite = suite_shapes(device, quick)[index]
    operands = Operands(suite, device, dtype)
    for phase in suite.phases:
        make_step(build(AUTO, operands), operands, phase)()
    if device == "cuda":
        torch.cuda.synchronize()


def publish(cache: Path, target: Path) -> int:
    """Add the tuner's cache to a file of the package, written to the side and renamed; returns how many entries it holds.

    What was tuned before stays: in another dtype, or of shapes that this time left out.

    Raises:
        ValueError: the cache is missing, damaged or holds nothing; or the file of the package is damaged or of another
            format.
    """
    data = _read(cache)
    if not (entries := data.get("entries")):
        raise ValueError(f"{cache} holds no tuning results")
    if target.is_file():
        before = _read(target)
        if before.get("format") != data.get("format"):
            raise ValueError(
                f"{target} is of format {before.get('format')}, but what was tuned of {data.get('format')}"
            )
        data = {**data, "entries": {**before.get("entries", {}), **entries}}
    target.parent.mkdir(parents=True, exist_ok=True)
    beside = target.with_suffix(f".{os.getpid()}.part")
    beside.write_text(json.dumps(data, indent=1, sort_keys=True) + "\n")
    os.replace(beside, target)
    return len(data["entries"])


def _read(path: Path) -> dict[str, Any]:
    try:
        data = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} holds no tuning results: {error}") from error
    if not isinstance(data, dict) or not isinstance(data.get("entries", {}), dict):
        raise ValueError(f"{path} holds no tuning results")
    return data


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--dtype", choices=("bfloat16", "float16", "float32"), default="bfloat16")
    parser.add_argument("--quick", action="store_true", help="tiny shapes: tries the script")
    parser.add_argument("--minutes", type=float, default=9.0, help="for everything; shapes that do not fit are left")
    parser.add_argument("--out", type=Path, default=CONFIGS)
    parser.add_argument("--logs", type=Path, default=machine.ROOT / "runs" / "gpu-tune")
    parser.add_argument("--shape", type=int, help=argparse.SUPPRESS)  # what the processes are started with
    args = parser.parse_args(argv)
    if args.device == "cuda" and not torch.cuda.is_available():
        parser.error(f"torch {torch.__version__} sees no CUDA device; GPU_PYTHON=... names another Python to make")
    if args.quick and args.out == CONFIGS:
        args.out = args.logs  # what tiny shapes say is nothing to ship
    args.out, args.logs = args.out.resolve(), args.logs.resolve()
    return args


def main(argv: Sequence[str] | None = None) -> int:
    """Tune shape after shape and publish; 1 if there is nothing to publish."""
    args = parse(argv)
    if args.shape is not None:
        tune_shape(args.shape, args.device, getattr(torch, args.dtype), args.quick)
        return 0
    deadline = time.monotonic() + 60 * args.minutes
    cache = args.logs / "tune.json"
    cache.unlink(missing_ok=True)
    env = steps.environment(WEIT_TUNE="full", WEIT_CACHE=str(cache))
    for index, suite in enumerate(suite_shapes(args.device, args.quick)):
        if deadline - time.monotonic() < steps.GRACE:
            print(f"{suite.name}: not tuned, the time was up")
            continue
        command = [sys.executable, "-m", "benchmarks.gpu.tune", "--shape", str(index)]
        command += ["--device", args.device, "--dtype", args.dtype, *(["--quick"] if args.quick else [])]
        log = args.logs / f"{suite.name}.log"
        outcome = steps.bounded(command, deadline - time.monotonic() - steps.GRACE, log, env)
        last: Any = outcome.output.strip().splitlines()[-1:]
        end = "tuned" if outcome.returncode == 0 else f"FAILED or cut short ({outcome.returncode}): {last}"
        print(f"{suite.name}: {end}, {outcome.seconds:.0f} s", flush=True)
    target = args.out / f"{machine.slug(machine.device_facts(args.device)['name'])}.json"
    try:
        print(f"{target}: {publish(cache, target)} entries")
    except ValueError as error:
        print(f"nothing published: {error}")
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
