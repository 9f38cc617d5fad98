"""A result of the suite as a page: ``python -m benchmarks.gpu.page benchmarks/results/FILE > docs/gpu_h200.md``."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.gpu import goals
from benchmarks.gpu.contenders import AUTO, COMPILED, DENSE, FORCED, MATERIALISED
from benchmarks.tables import Table


def page(data: Mapping[str, Any], name: str) -> str:
    """Table, ratios of every contender, goals, and what was left out; ``name``: of the file that ``data`` was in."""
    versions = ", ".join(f"{key} {value}" for key, value in data["versions"].items())
    rows = data["rows"]
    return "\n".join(
        [
            f"# The suite on {data['device']['name']}",
            "",
            f"Written by `python -m benchmarks.gpu.page benchmarks/results/{name}`; {data['dtype']}; {versions};",
            f"{data['date'][:10]}. [gpu.md](gpu.md) says what the columns mean and what follows.",
            "",
            goals.table(rows),
            "",
            "## Every contender",
            "",
            "How many times as fast as the dense layer of the same rounds.",
            "",
            ratios(rows),
            "",
            "## Goals",
            "",
            *(f"- {goal}" for goal in goals.judge(rows)),
            *(f"- failed: {message}" for message in goals.failures(rows)),
            *(f"- not run: {item}" for item in data["not_run"]),
        ]
    )


def ratios(rows: Sequence[Mapping[str, Any]]) -> str:
    """A column for each contender that has a figure in any row."""
    names = [AUTO, MATERIALISED, COMPILED, *FORCED]
    names = [name for name in names if any(goals.figure(row, name) for row in rows)]
    lines = [
        [
            row["shape"],
            row["phase"],
            goals.number(goals.figure(row, DENSE, "seconds"), 1e3, 4),
            *(goals.number(goals.figure(row, name)) for name in names),
        ]
        for row in rows
    ]
    return Table("", "", ["shape", "phase", f"{DENSE}, ms", *names], lines).markdown()


def main() -> None:
    """Print the page of a result file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("results", type=Path)
    path = parser.parse_args().results
    print(page(json.loads(path.read_text()), path.name))


if __name__ == "__main__":
    main()
