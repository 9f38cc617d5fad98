"""Time the operator, its peers and whole models on this machine, and write tables, plots and an HTML report.

The suites are in the repository, not in the installed package: run this in a checkout.
"""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

from jsonargparse import Namespace

from weit.cli.arguments import Parser, add_fields, flags_of, read_fields
from weit.engine.run_folder import write_flags

RESUME = "what was measured by then, if anything, is in the report"
NOT_RUN = 2, 4  # exit statuses of the suites where an option is wrong or a suite cannot be imported


@dataclass(frozen=True)
class BenchFlags:
    """What to run, and where the results go.

    Args:
        out: folder for results.json, table.md, plots and report.html.
        device: cpu or cuda.
        dtype: float32, bfloat16 or float16.
        shapes: names in benchmarks/suite.json; those of each suite if not given.
        suites: any of linear, conv, peers, memory, models, growth; all if not given.
        minutes: what would start later is left out and listed.
        quick: small sizes and few rounds, to try the suites; the figures then mean nothing.
        add: pool this run with what out holds; several runs at different hours say more than a long one.
    """

    out: Path = Path("runs/bench")
    device: Literal["cpu", "cuda"] = "cpu"
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    shapes: list[str] | None = None
    suites: list[str] | None = None
    minutes: float | None = None
    quick: bool = False
    add: bool = False

    def arguments(self) -> list[str]:
        """The same for ``python -m benchmarks``."""
        given = ["--out", str(self.out), "--device", self.device, "--dtype", self.dtype]
        given += ["--shapes", ",".join(self.shapes or ()), "--suites", ",".join(self.suites or ())]
        given += [] if self.minutes is None else ["--minutes", str(self.minutes)]
        return given + ["--quick"] * self.quick + ["--add"] * self.add


def add_arguments(parser: Parser) -> None:
    add_fields(parser, BenchFlags)


def run(parser: Parser, given: Namespace) -> None:
    flags = read_fields(parser, given, BenchFlags)
    if not Path("benchmarks", "suite.json").is_file():
        raise FileNotFoundError(
            "there is no benchmarks/ here: the suites are in weit's repository, run this in a checkout"
        )
    if missing := [name for name in ("pytest", "pytest_benchmark", "pytest_timeout") if find_spec(name) is None]:
        raise RuntimeError(f"the suites need {', '.join(missing)}: pip install .[bench]")
    before = _written(flags.out)
    suites = subprocess.Popen([sys.executable, "-m", "benchmarks", *flags.arguments()])
    try:
        status = suites.wait()
    except KeyboardInterrupt:
        suites.wait()  # the same Ctrl-C stopped them, and they still write what they measured
        raise
    if _written(flags.out) != before:
        write_flags(flags.out, flags_of(given))
    if status in NOT_RUN:
        raise RuntimeError("the suites did not start: what is wrong with the options or the suites is said above")
    if status:
        raise RuntimeError("not everything ran: what failed is listed above and, if there is one, in the report")


def _written(out: Path) -> int | None:
    """When the results in ``out`` were written, if there are any."""
    results = out / "results.json"
    return results.stat().st_mtime_ns if results.is_file() else None
