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
from benchmarks.record import NO_TIME
from benchmarks.results_file import Results, not_of_one
from weit.files import atomic_write

Json = dict[str, Any]


def pool(runs: Sequence[Results]) -> Json:
    """What the file of one run would hold that had all visits of ``runs``.

    Figures are renewed, medians are the median of the runs', what one run did not run may come from another, and memory is
    of the first run that has it.

    Raises:
        ValueError: the runs are of different machines, settings or commits, or their files do not say what visits found.
    """
    first = runs[0]
    for run in runs:
        refuse(first, run)
    if len({run.data["datetime"] for run in runs}) < len(runs):
        raise ValueError("a run counts once, but two of those to pool began at the same moment")
    found: dict[str, list[Json]] = {}
    before = 0
    for run in runs:
        for bench in run.data["benchmarks"]:
            found.setdefault(bench["fullname"], []).append(_numbered(bench, before))
        before += len(run.runs)
    pooled = [_pooled(benches) for benches in found.values()]
    measured = {_who(bench["extra_info"]) for bench in pooled} | found.keys()
    listed = [{row.get("case") for row in run.data["weit"]["not_run"]} for run in runs if run.data["weit"]["memory"]]
    # What had no time in one run may have had a better reason in another, which then comes last.
    not_run = sorted(_all(runs, "not_run"), key=lambda row: row["reason"] != NO_TIME)
    return {
        **first.data,
        "benchmarks": pooled,
        "weit": {
            **first.data["weit"],
            "not_run": [
                row
                for who, row in {_who(row): row for row in not_run}.items()
                if not measured & {who, row.get("case")}
                and not (row["suite"] == "memory" and any(row.get("case") not in cases for cases in listed))
            ],
            "failed": list({_who(row): row for row in _all(runs, "failed")}.values()),
            "memory": _once(_all(runs, "memory"), "what", "weights", "dtype"),
            "budgets": _once(_all(runs, "budgets"), "budget_gb"),
            "runs": [about for run in runs for about in run.runs],
        },
    }


def refuse(first: Results, run: Results) -> None:
    """Raise ``ValueError`` if ``run`` is not of the machine, the settings and the commit of ``first``.

    Two runs with local changes, or outside a repository, may be of any code, so they are not of one commit.
    """
    apart = [name for name in ("device", "dtype", "quick", "keeps_memory", "large_pages")
             if run.data["weit"].get(name) != first.data["weit"].get(name)]  # fmt: skip
    apart += [name for name in ("processor", "cores", "GPU", "threads", "torch", "weit")
              if run.machine.get(name) != first.machine.get(name)]  # fmt: skip
    commits = {about["commit"] for each in (first, run) for about in each.runs}
    if len(commits) > 1 or (run is not first and any(not_of_one(commit) for commit in commits)):
        apart.append(f"commit ({', '.join(sorted(commits))})")
    if apart:
        raise ValueError(f"runs are pooled of one machine, setting and commit, but they differ in {', '.join(apart)}")


def _all(runs: Sequence[Results], what: str) -> list[Json]:
    return [row for run in runs for row in run.data["weit"][what]]


def _once(rows: Sequence[Json], *names: str) -> list[Json]:
    """The first row of each case."""
    return list({tuple(row[name] for name in names): row for row in reversed(rows)}.values())[::-1]


def _numbered(bench: Json, before: int) -> Json:
    """With each visit's run, counted from 0, where ``before`` come first."""
    if "by_visit" not in (row := bench["extra_info"]):
        return bench
    visits = [{**visit, "run": before + visit.get("run", 0)} for visit in row["by_visit"]]
    return {**bench, "extra_info": {**row, "by_visit": visits}}


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
    plans = {"plan": " or ".join(dict.fromkeys(row["plan"] for row in rows))} if "plan" in rows[0] else {}
    return {**benches[0], "extra_info": {**rows[0], **medians, **plans, **of_visits(visits, of)}}


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
    except (ValueError, OSError) as error:
        raise SystemExit(str(error)) from None


if __name__ == "__main__":
    main()
