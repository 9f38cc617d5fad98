"""Two runs of the suites side by side: which ratios agree."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.behind import AGREES
from benchmarks.tables import Table

Row = Mapping[str, Any]
Case = tuple[str, str, str]  # suite, contender, what was timed


def rerun(rows: Sequence[Row], again: Sequence[Row]) -> Table:
    """How far the ratios of a second run are from the first one's, by suite and contender."""
    first, second = ({_case(row): row for row in some} for some in (rows, again))
    apart = {case: second[case]["ratio"] / first[case]["ratio"] - 1 for case in first if case in second}
    alone = len(first.keys() ^ second.keys())
    medians = {case: _of_medians(second[case]) / _of_medians(first[case]) - 1 for case in apart}
    names = list(dict.fromkeys(case[:2] for case in apart))
    lines = [_line(who, *({c: by[c] for c in by if c[:2] == who} for by in (apart, medians))) for who in names]
    if len(names) > 1:
        lines.append([*_line(("all", ""), apart, medians)[:-1], ""])
    return Table(
        "The same, run again",
        "How far the ratios of a second run are from those above: how many there are, how many differ by no more than "
        f"{AGREES:.0%}, by how much the median of them, and those further apart; beside them how many ratios of the medians "
        f"of all rounds differ by no more than that. {alone} cases are in one of the runs only.",
        ("suite", "contender", "cases", "agree", "by medians", "median", "further apart"),
        lines,
        reason=True,
    )


def _line(who: tuple[str, str], apart: Mapping[Case, float], medians: Mapping[Case, float]) -> list[str]:
    far = {case: change for case, change in apart.items() if abs(change) > AGREES}
    said = "; ".join(f"{case[2]} {change:+.0%}" for case, change in far.items())
    return [
        *who,
        f"{len(apart)}",
        f"{len(apart) - len(far)}",
        f"{sum(abs(change) <= AGREES for change in medians.values())}",
        f"{statistics.median(map(abs, apart.values())):.1%}",
        said,
    ]


def _of_medians(row: Row) -> float:
    return float(row["dense_median"] / row["median"]) if "median" in row else float(row["ratio"])


def _case(row: Row) -> Case:
    if row["suite"] == "growth":
        return "growth", "auto", f"{row['what']}, {row['axis']} {row['value']}"
    return row["suite"], row["contender"], f"{row['shape']} {row['phase']}"
