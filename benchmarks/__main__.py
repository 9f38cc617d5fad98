"""Run the suites, then write a table and an HTML report with the machine, the plots and what could not run.

    python -m benchmarks [--quick] [--device cuda] [--shapes deit_b_fc1,llm_4096] [--minutes 9.5] [--out runs/bench] [--add]

``weit bench`` and ``make bench`` call this.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

import pytest
import torch
from pytest_benchmark.utils import get_commit_info

from benchmarks import html, report
from benchmarks.options import DTYPES
from benchmarks.pool import pool, refuse, write
from benchmarks.results_file import Results
from weit.files import atomic_write
from weit.report.html import machine

HERE = Path(__file__).parent


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--dtype", choices=DTYPES, default="float32")
    parser.add_argument("--shapes", default="", help="names in benchmarks/suite.json, with commas between them")
    parser.add_argument("--quick", action="store_true", help="small sizes, few rounds: tries the suites")
    parser.add_argument("--minutes", type=float, help="what would start later is left out and listed")
    parser.add_argument("--suites", default="", help="such as linear,peers; all by default")
    parser.add_argument("--out", type=Path, default=Path("runs/bench"))
    parser.add_argument("--add", action="store_true", help="pool this run with what --out holds (benchmarks.pool)")
    return parser.parse_args(argv)


def refuse_to_add(earlier: Results, args: argparse.Namespace) -> None:
    """Raise ``ValueError`` if a run with ``args``, on this machine and of this commit, could not join ``earlier``."""
    large_pages = earlier.data["weit"].get("large_pages")  # known when the suites run, the same on the same machine
    settings = {"device": args.device, "dtype": args.dtype, "quick": args.quick, "large_pages": large_pages}
    settings["keeps_memory"] = earlier.data["weit"].get("keeps_memory")
    about = {"weit": machine(), "threads": torch.get_num_threads()}
    data = {"machine_info": about, "commit_info": get_commit_info(), "datetime": "", "benchmarks": [], "weit": settings}
    refuse(earlier, Results("this run", data))
    pool([earlier])


def set_aside(file: Path) -> Path:
    """Rename a result file after the moment, so that another can take its name."""
    aside = file.with_name(f"results-{datetime.now():%Y-%m-%d-%H%M%S-%f}.json")
    file.rename(aside)
    return aside


def main(argv: Sequence[str] | None = None) -> int:
    """Run and report; pytest's exit status, so 1 if anything failed."""
    args = parse(argv)
    files = [HERE / f"test_{name}.py" for name in args.suites.split(",") if name]
    if missing := [path.stem.removeprefix("test_") for path in files if not path.is_file()]:
        known = ", ".join(sorted(path.stem.removeprefix("test_") for path in HERE.glob("test_*.py")))
        print(f"no such suites: {', '.join(missing)}; suites are {known}")
        return 2
    args.out.mkdir(parents=True, exist_ok=True)
    found, part = args.out / "results.json", args.out / "results.json.part"
    if part.is_file():
        print(f"An earlier run left {set_aside(part)}")
    earlier = found if found.is_file() else None
    if args.add and earlier:
        try:  # before minutes are spent
            refuse_to_add(Results.read(earlier), args)
        except ValueError as error:
            print(f"--add: {error}")
            return 2
    # With "=": pytest, before it knows these options, takes a value by itself for a folder to look for conftest.py in.
    options = [f"--device={args.device}", f"--dtype={args.dtype}", f"--shapes={args.shapes}"]
    options += ["--quick"] * args.quick + ([] if args.minutes is None else [f"--minutes={args.minutes}"])
    plain = ["-q", "--timeout=0", "--benchmark-quiet", f"--benchmark-json={part}"]
    status = int(pytest.main([*map(str, files or [HERE]), *options, *plain]))
    if not part.is_file() or not part.stat().st_size:
        part.unlink(missing_ok=True)
        print("nothing was measured, so there is no new report")
        return status or 1
    if earlier and args.add:
        try:
            write([found, part], found)
        except ValueError as error:  # a file that was edited meanwhile makes another code of it
            print(f"--add: {error}; this run is in {set_aside(part)}")
            return 1
        part.unlink()
    else:
        if earlier:
            print(f"The results that were here are in {set_aside(earlier)}")
        os.replace(part, found)
    results = Results.read(found)
    atomic_write(args.out / "table.md", report.document(results, {}) + "\n")
    of = f", of {len(results.runs)} runs pooled" if len(results.runs) > 1 else ""
    print(f"Report: {html.write(results, args.out)}; figures: {found}{of}")
    return status


if __name__ == "__main__":
    raise SystemExit(main())
