"""The same work timed twice in one run: how far apart two of its ratios are, and so how far to trust one."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import ceil
from typing import Any

from benchmarks.tables import AUTO, Table, cases
from weit_kernels.shapes import FEW_ROWS

Row = Mapping[str, Any]
CLOSE = 1.1  # ratios that differ by no larger factor agree
_BY_NAME = ", by name"
FEW, MANY = f"up to {FEW_ROWS} rows", "more rows"


@dataclass(frozen=True)
class Pair:
    """Two ratios of one computation; ``factor`` from 1: how many times as large one is as the other.

    ``suspect``: called by name it is faster by so much that ``auto`` may be slower indeed.
    """

    case: str
    kind: str
    factor: float
    suspect: bool = False


def pairs(rows: Sequence[Row]) -> list[Pair]:
    """What ``auto`` does, timed beside this package's paths and beside peers, and called by name.

    Each has moments, processor caches and memory of its own, as another run would have.
    """
    found = []
    for shape, phase, what, one, other in _twice(rows):
        change = other["ratio"] / one["ratio"]
        suspect = what == _BY_NAME and change > CLOSE
        found.append(Pair(f"{shape} {phase}{what}", kind_of(one), apart(change), suspect))
    return found


def _twice(rows: Sequence[Row]) -> Iterator[tuple[str, str, str, Row, Row]]:
    beside_peers = cases(rows, ("peers",))
    for (shape, phase), found in cases(rows, ("linear", "conv2d")).items():
        if (auto := found.get(AUTO)) is None:
            continue
        if (named := found.get(auto.get("plan", ""))) is not None:
            yield shape, phase, _BY_NAME, auto, named
        if (again := beside_peers.get((shape, phase), {}).get(AUTO)) is not None:
            yield shape, phase, ", beside peers", auto, again


def apart(change: float) -> float:
    """The factor from 1 by which something changed, up or down."""
    return max(change, 1 / change)


def at_most(factor: float) -> str:
    """A factor in two digits that it does not exceed."""
    return f"{ceil(100 * factor - 1e-6) / 100:.2f}"


def kind_of(row: Row) -> str:
    """Few rows or more: calls of a few µs and large weights feel the rest of the machine most."""
    return FEW if row.get("rows", FEW_ROWS + 1) <= FEW_ROWS else MANY


def noise(rows: Sequence[Row]) -> dict[str, float]:
    """Kind of case → factor by which two ratios of the same work differed at the most, and ``CLOSE`` at the least."""
    found = {FEW: CLOSE, MANY: CLOSE}
    for pair in (each for each in pairs(rows) if not each.suspect):
        found[pair.kind] = max(found[pair.kind], pair.factor)
    return found


def same_work(rows: Sequence[Row]) -> Table:
    """How far apart they are, by kind of case."""
    every = pairs(rows)
    lines = []
    for kind in (FEW, MANY):
        some = [pair for pair in every if pair.kind == kind]
        if not some:
            continue
        most = max(some, key=lambda pair: pair.factor)
        agree = sum(pair.factor <= CLOSE for pair in some)
        middle = statistics.median(pair.factor for pair in some)
        lines.append([kind, f"{len(some)}", f"{agree}", f"{middle:.2f}", f"{most.factor:.2f}", most.case])
    return Table(
        "The same work, timed twice in this run",
        "What `auto` does is timed beside this package's paths, beside peers, and by the name of the path that it chose: "
        f"pairs of ratios that would be the same on a machine without other users; how many are within a factor of {CLOSE}, "
        "the factor in the middle, and the largest with its case. A smaller difference between two ratios of this run says "
        "nothing, and a larger one something only if there are many pairs and others left the machine alone; those of peers "
        "and of plain torch, which move more through memory, may come further apart.",
        ("cases of", "pairs", "agree", "median", "largest", "which"),
        lines,
        words=1,
        reason=True,
    )
