"""On how many ratios pools of runs agree, in all ways to choose them: the table of docs/speed.md.

    python -m benchmarks.ways POOLED.json [MORE.json ...]

The files are those of ``benchmarks.pool``, or of single runs.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

from benchmarks.results_file import Results
from benchmarks.same_work import CLOSE, apart
from benchmarks.tables import AUTO, Table, compared

_CLOSER = 1.05
Visits = list[tuple[float, float]]  # seconds of the dense layer and of the contender
Figures = Mapping[str, Mapping[int, Visits]]  # test → run → its visits


def visits_of(files: Sequence[Results]) -> tuple[dict[str, dict[int, Visits]], set[str], int]:
    """Visits of every figure by run, which figures are ``auto``'s, and how many runs there are."""
    figures: dict[str, dict[int, Visits]] = {}
    chosen, before = set(), 0
    for file in files:
        for bench in file.data["benchmarks"]:
            name, row = bench["fullname"], bench["extra_info"]
            if not compared(row):
                continue
            if row.get("contender", AUTO) == AUTO:
                chosen.add(name)
            for visit in row["by_visit"]:
                run = before + visit.get("run", 0)
                figures.setdefault(name, {}).setdefault(run, []).append((visit["dense_seconds"], visit["seconds"]))
        before += len(file.runs)
    return {name: runs for name, runs in figures.items() if len(runs) == before}, chosen & figures.keys(), before


def ways(files: Sequence[Results]) -> Table:
    """For each size of pool: how many ways there are to choose two, and on how many ratios the two agree."""
    figures, chosen, runs = visits_of(files)
    lines = []
    for size in range(1, runs // 2 + 1):
        pools = {members: _ratios(figures, members) for members in combinations(range(runs), size)}
        pairs = [(one, other) for one, other in combinations(pools, 2) if not {*one} & {*other}]
        changes = [{name: apart(pools[a][name] / pools[b][name]) for name in figures} for a, b in pairs]
        cells = [
            _spread(sum(change[name] <= limit for name in names) for change in changes)
            for names in (figures.keys(), chosen & figures.keys())
            for limit in (CLOSE, _CLOSER)
        ]
        lines.append([f"two of {size}", f"{len(pairs)}", *cells])
    return Table(
        "Pools of runs",
        f"Of {len(figures)} ratios, and of {len(chosen & figures.keys())} of `auto`: the fewest, the middle, the most.",
        ("pools", "ways", f"all within {CLOSE}", f"{_CLOSER}", f"auto's within {CLOSE}", f"{_CLOSER}"),
        lines,
        words=1,
    )


def _ratios(figures: Figures, members: Sequence[int]) -> dict[str, float]:
    """Each time of its fastest visit in any of the runs."""
    found = {}
    for name, by_run in figures.items():
        dense, seconds = zip(*(visit for run in members for visit in by_run[run]), strict=True)
        found[name] = min(dense) / min(seconds)
    return found


def _spread(counts: Iterable[int]) -> str:
    ordered = sorted(counts)
    return f"{ordered[0]}, {ordered[len(ordered) // 2]}, {ordered[-1]}"


def main(argv: Sequence[str] | None = None) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+", type=Path)
    found: Any = ways([Results.read(path) for path in parser.parse_args(argv).files])
    print(found.note, found.markdown(), sep="\n\n")


if __name__ == "__main__":
    main()
