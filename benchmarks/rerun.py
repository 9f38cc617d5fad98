"""Two runs of the suites side by side: which ratios agree, and how fast the machine was where they do not."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.tables import LOUD, Table

Row = Mapping[str, Any]
Case = tuple[str, str, str]  # suite, contender, what was timed
AGREES = 0.1  # ratios that differ by no more are the same


def rerun(rows: Sequence[Row], again: Sequence[Row]) -> Table:
    """How far the ratios of a second run are from the first one's, by suite and contender."""
    first, second = ({_case(row): row for row in some} for some in (rows, again))
    apart = {case: second[case]["ratio"] / first[case]["ratio"] - 1 for case in first if case in second}
    alone = len(first.keys() ^ second.keys())
    names = list(dict.fromkeys(case[:2] for case in apart))
    lines = [_line(who, {c: x for c, x in apart.items() if c[:2] == who}, first, second) for who in names]
    if len(names) > 1:
        lines.append([*_line(("all", ""), apart, first, second)[:-1], ""])
    return Table(
        "The same, run again",
        "How far the ratios of a second run are from those above: of those that were quiet in both, and of all others, loud "
        f"ones ({LOUD}) and ones of which it is not known, how many by no more than {AGREES:.0%}; the median; and those "
        "further apart, with the GFLOP/s of a matrix product beside both and what threads take to begin and end together. "
        f"{alone} cases are in one of the runs only.",
        ("suite", "contender", "quiet", "agree", "others", "agree", "median", "further apart"),
        lines,
        reason=True,
    )


def _line(
    who: tuple[str, str], apart: Mapping[Case, float], first: Mapping[Case, Row], second: Mapping[Case, Row]
) -> list[str]:
    quiet = {case for case in apart if not any(run[case].get("loud", True) for run in (first, second))}
    far = {case for case, change in apart.items() if abs(change) > AGREES}
    counts = [f"{n}" for some in (quiet, apart.keys() - quiet) for n in (len(some), len(some - far))]
    said = [
        f"{case[2]} {change:+.0%}{LOUD * any(run[case].get('loud', False) for run in (first, second))} "
        f"({_pace(first[case])} and {_pace(second[case])})"
        for case, change in apart.items()
        if case in far
    ]
    return [*who, *counts, f"{statistics.median(map(abs, apart.values())):.1%}", "; ".join(said)]


def _case(row: Row) -> Case:
    if row["suite"] == "growth":
        return "growth", "auto", f"{row['what']}, {row['axis']} {row['value']}"
    return row["suite"], row["contender"], f"{row['shape']} {row['phase']}"


def _pace(row: Row) -> str:
    handshake = f", {1e6 * row['handshake']:.1f} µs" if "handshake" in row else ""
    return f"{row['gflops']:.0f}{handshake}" if "gflops" in row else "unknown"
