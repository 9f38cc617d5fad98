"""Check the package on this machine's GPU in less than nine minutes.

    make gpu-check                                   build, tests, suite; results in benchmarks/results/<device>.json
    python -m benchmarks.gpu --steps suite           the suite alone
    python -m benchmarks.gpu --device cpu --quick    tries this script itself, on tiny shapes

docs/gpu.md says how to read the result file.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from benchmarks.gpu import goals, machine, steps, warm
from benchmarks.gpu.results import Results

STEPS = ("build", "tests", "suite")
BUILD_SECONDS, TEST_SECONDS = 120.0, 170.0  # at most; the suite gets what they leave
QUICK_TESTS = {"tests of the definition": ["tests/weit_kernels/test_reference.py"]}


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--dtype", choices=("bfloat16", "float16", "float32"), default="bfloat16")
    parser.add_argument("--quick", action="store_true", help="tiny shapes, no build, few tests: tries the script")
    parser.add_argument("--steps", nargs="+", choices=STEPS, default=STEPS)
    parser.add_argument("--minutes", type=float, default=8.5, help="for everything; what does not fit is left out")
    parser.add_argument("--out", type=Path, default=machine.ROOT / "benchmarks" / "results")
    parser.add_argument("--logs", type=Path, default=machine.ROOT / "runs" / "gpu-check")
    args = parser.parse_args(argv)
    if args.device == "cuda" and not torch.cuda.is_available():
        parser.error(
            f"torch {torch.__version__} sees no CUDA device; GPU_PYTHON=... names another Python to make, "
            "and --device cpu --quick tries the script without a GPU"
        )
    if args.device == "cpu" and not args.quick:
        parser.error(
            "--device cpu tries the script and needs --quick: all of it installs the package and takes minutes"
        )
    if args.minutes <= 0:
        parser.error(f"--minutes must be more than 0, got {args.minutes}")
    args.out, args.logs = args.out.resolve(), args.logs.resolve()
    return args


def main(argv: Sequence[str] | None = None) -> int:
    """Run the steps and print what was found; 1 if tests failed or nothing could be measured."""
    began = time.time()
    args = parse(argv)
    deadline = began + 60 * args.minutes
    os.environ.setdefault("WEIT_TUNE", "1")
    header = machine.header(args.device, args.dtype, args.quick)
    name = machine.slug(header["device"]["name"]) + ("-quick" if args.quick else "")
    if "suite" not in args.steps:  # the suite's file keeps its rows
        name = "-".join([name, *args.steps])
    results = Results.create(args.out / f"{name}.json", {**header, "steps": {}})
    print(f"{header['device']['name']}, torch {torch.__version__}: {args.minutes:g} minutes at most", flush=True)

    passed = True
    if "build" in args.steps and not args.quick:
        found = steps.build(min(BUILD_SECONDS, deadline - time.time()), args.logs)
        steps.print_outcome("build", found)
        results.data["steps"]["build"] = found
        results.save()
    if "tests" in args.steps:
        passed = run_tests(args, results, deadline)
    if "suite" in args.steps:
        arguments = ["--device", args.device, "--dtype", args.dtype, *(["--quick"] if args.quick else [])]
        print(f"suite: {max(0, deadline - time.time()):.0f} s at most", flush=True)
        found = steps.measure(results.path, arguments, deadline, args.logs, steps.environment())
        for death in found["deaths"]:
            print(f"the measuring process was lost at {', '.join(death['contenders']) or '?'}: {death['message']}")
        results = Results.load(results.path)
        results.data["steps"]["suite"] = found
    rows = results.data["rows"]
    results.data["goals"] = [{"goal": g.name, "met": g.met, "reached": g.reached} for g in goals.judge(rows)]
    results.data["seconds"] = round(time.time() - began, 1)
    results.save()
    for left in args.out.glob(f"{name}.*.part"):  # of a process that was killed while it wrote
        left.unlink()
    if args.quick:
        print("Tiny shapes: these figures say that the script works and nothing else.")
    print(goals.summary(rows, results.data["not_run"]))
    print(f"\n{results.path}, {results.data['seconds']:.0f} s in all; logs in {args.logs}")
    measured = any("seconds" in figures for row in rows for figures in row["contenders"].values())
    return 0 if passed and (measured or "suite" not in args.steps) else 1


def run_tests(args: argparse.Namespace, results: Results, deadline: float) -> bool:
    """The tests, and beside them the compilation of what the suite needs; whether all that ran passed."""
    end = min(time.time() + TEST_SECONDS, deadline)
    warms = args.device == "cuda" and "suite" in args.steps and args.dtype == "bfloat16"
    workers = warm.start_workers(args.logs) if warms else []
    try:
        found = steps.run_tests(end - time.time(), args.logs, QUICK_TESTS if args.quick else steps.TESTS)
    finally:
        warm.finish_workers(workers, end - time.time())
    results.data["steps"]["tests"] = found
    results.save()
    for name, facts in found.items():
        steps.print_outcome(name, facts)
    return all(facts["returncode"] in (0, 5, None) and not facts.get("failed") for facts in found.values())


if __name__ == "__main__":
    raise SystemExit(main())
