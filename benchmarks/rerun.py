"""Two runs of the suites side by side: which ratios agree, and how fast the machine was where they do not."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.tables import Table

Row = Mapping[str, Any]
Case = tuple[str, str, str]  # suite, contender, what was timed
AGREES = 0.1  # ratios that differ by no more are the same


def rerun(rows: Sequence[Row], again: Sequence[Row]) -> Table:
    """How far the ratios of a second run are from the first one's, by suite and contender."""
    first, second = ({_case(row): row for row in some} for some in (rows, again))
    apart = {case: second[case]["ratio"] / first[case]["ratio"] - 1 for case in first if case in second}
    alone = len(first.keys() ^ second.keys())
    lines = []
    for who in dict.fromkeys(case[:2] for case in apart):
        found = {case: change for case, change in apart.items() if case[:2] == who}
        others = [
            f"{case[2]} {change:+.0%} ({_pace(first[case])} and {_pace(second[case])})"
            for case, change in found.items()
            if abs(change) > AGREES
        ]
        median = statistics.median(map(abs, found.values()))
        lines.append([*who, f"{len(found)}", f"{len(found) - len(others)}", f"{median:.1%}", "; ".join(others)])
    return Table(
        "The same, run again",
        f"How far the ratios of a second run are from those above: how many by no more than {AGREES:.0%}, the median, and "
        f"the others, with the GFLOP/s of a dense matrix product beside both and what threads take to begin and end "
        f"together. {alone} cases are in one of the runs only.",
        ("suite", "contender", "ratios", "agree", "median", "others"),
        lines,
        reason=True,
    )


def _case(row: Row) -> Case:
    if row["suite"] == "growth":
        return "growth", "auto", f"{row['what']}, {row['axis']} {row['value']}"
    return row["suite"], row["contender"], f"{row['shape']} {row['phase']}"


def _pace(row: Row) -> str:
    handshake = f", {1e6 * row['handshake']:.1f} µs" if "handshake" in row else ""
    return f"{row['gflops']:.0f}{handshake}" if "gflops" in row else "unknown"
