"""Several runs of the suites on one machine as one: every figure from the visits of all.

    python -m benchmarks.pool RUN.json RUN.json [MORE.json ...] --out POOLED.json

What a layer takes depends on where the host runs a virtual machine's cores, for minutes at a time; a run of ten minutes
sees few of those moments, several runs at different hours see more. ``weit bench --add`` does this with its folder.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.duel import of_visits
from benchmarks.results_file import Results
from weit.files import atomic_write

Json = dict[str, Any]
_ALIKE = "device", "dtype", "quick"


def pool(runs: Sequence[Results]) -> Json:
    """What the file of one run would hold that had all visits of ``runs``.

    Figures are renewed, medians are the median run's, what one run had no time for may come from another, and memory
    and all that is no figure is the first run's.

    Raises:
        ValueError: the runs are of different machines, settings or commits, or their files do not say what visits found.
    """
    first = runs[0]
    for run in runs[1:]:
        apart = [name for name in _ALIKE if run.data["weit"][name] != first.data["weit"][name]]
        apart += [
            name
            for name in ("processor", "cores", "GPU", "threads", "torch", "weit")
            if _of(run, name) != _of(first, name)
        ]
        apart += ["commit"] * (len({about["commit"] for each in (first, run) for about in each.runs}) > 1)
        if apart:
            raise ValueError(
                f"runs are pooled of one machine, setting and commit, but they differ in {', '.join(apart)}"
            )
    found: dict[str, list[Json]] = {}
    for run in runs:
        for bench in run.data["benchmarks"]:
            found.setdefault(bench["fullname"], []).append(bench)
    missing = [set(map(_who, run.data["weit"]["not_run"])) for run in runs]
    failed = {_who(row): row for run in runs for row in run.data["weit"]["failed"]}
    return {
        **first.data,
        "benchmarks": [_pooled(benches) for benches in found.values()],
        "weit": {
            **first.data["weit"],
            "not_run": [row for row in first.data["weit"]["not_run"] if all(_who(row) in each for each in missing)],
            "failed": list(failed.values()),
            "runs": [about for run in runs for about in run.runs],
        },
    }


def _pooled(benches: Sequence[Json]) -> Json:
    rows = [bench["extra_info"] for bench in benches]
    if not any("ratio" in row for row in rows):
        return benches[0]
    if any("by_visit" not in row for row in rows):
        raise ValueError(f"{benches[0]['fullname']} does not say what its visits found: an earlier version measured it")
    medians = {
        name: statistics.median(row[name] for row in rows) for name in ("median", "dense_median", "iqr", "dense_iqr")
    }
    visits = [visit for row in rows for visit in row["by_visit"]]
    of = min if "fastest" in rows[0] else statistics.median
    return {**benches[0], "extra_info": {**rows[0], **medians, **of_visits(visits, of)}}


def _of(run: Results, name: str) -> str | None:
    return run.machine.get(name)


def _who(row: Mapping[str, str]) -> tuple[str | None, ...]:
    return tuple(row.get(name) for name in ("suite", "shape", "phase", "contender"))


def write(runs: Sequence[Path], out: Path) -> None:
    """Write the pool of the files ``runs`` to ``out``, which may be one of them; errors as for ``pool``."""
    atomic_write(out, json.dumps(pool([Results.read(path) for path in runs]), indent=4) + "\n")


def main(argv: Sequence[str] | None = None) -> None:
    """Write one file from several; exits with status 1 and one line if they are not of one kind."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args(argv)
    try:
        write(args.runs, args.out)
    except ValueError as error:
        raise SystemExit(str(error)) from None


if __name__ == "__main__":
    main()
