"""Two runs of the suites side by side: which ratios agree."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.same_work import CLOSE, apart
from benchmarks.tables import Table

Row = Mapping[str, Any]
Case = tuple[str, str, str]  # suite, contender, what was timed


def agreement(rows: Sequence[Row], again: Sequence[Row]) -> tuple[int, int]:
    """How many ratios of two runs are within ``CLOSE`` of each other, and how many there are."""
    changes = _changes(rows, again).values()
    return sum(map(_agree, changes)), len(changes)


def rerun(rows: Sequence[Row], again: Sequence[Row]) -> Table:
    """How far the ratios of a second run are from the first one's, by suite and contender."""
    changes, medians = _changes(rows, again), _changes(rows, again, medians=True)
    alone = len({*map(_case, rows)} ^ {*map(_case, again)})
    names = list(dict.fromkeys(case[:2] for case in changes))
    lines = [_line(who, *({c: by[c] for c in by if c[:2] == who} for by in (changes, medians))) for who in names]
    if len(names) > 1:
        lines.append([*_line(("all", ""), changes, medians)[:-1], ""])
    return Table(
        "The same, run again",
        "How far the ratios of a second run are from those above: how many there are, how many differ by no more than a "
        f"factor of {CLOSE}, by what factor the median of them, and those further apart; beside them how many ratios of the "
        f"medians of all rounds differ by no more than that. {alone} cases are in one of the runs only.",
        ("suite", "contender", "cases", "agree", "by medians", "median", "further apart"),
        lines,
        reason=True,
    )


def _changes(rows: Sequence[Row], again: Sequence[Row], medians: bool = False) -> dict[Case, float]:
    """What ratios that both runs have were multiplied by."""
    first, second = ({_case(row): _ratio(row, medians) for row in some} for some in (rows, again))
    return {case: second[case] / first[case] for case in first if case in second}


def _agree(change: float) -> bool:
    return apart(change) <= CLOSE


def _line(who: tuple[str, str], changes: Mapping[Case, float], medians: Mapping[Case, float]) -> list[str]:
    said = "; ".join(f"{case[2]} x {change:.2f}" for case, change in changes.items() if not _agree(change))
    return [
        *who,
        f"{len(changes)}",
        f"{sum(map(_agree, changes.values()))}",
        f"{sum(map(_agree, medians.values()))}",
        f"{statistics.median(map(apart, changes.values())):.3f}",
        said,
    ]


def _ratio(row: Row, medians: bool) -> float:
    return float(row["dense_median"] / row["median"]) if medians and "median" in row else float(row["ratio"])


def _case(row: Row) -> Case:
    if row["suite"] == "growth":
        return "growth", "auto", f"{row['what']}, {row['axis']} {row['value']}"
    return row["suite"], row["contender"], f"{row['shape']} {row['phase']}"
