"""Tables of benchmark results.

python -m benchmarks.report results.json [more.json ...] > docs/benchmarks.md
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any


def table(rows: Iterable[Mapping[str, Any]]) -> str:
    """A Markdown table of ``extra_info`` entries: times, ratio to dense, operation limit, and share of the limit."""
    lines = [
        "| shape | phase | rows | dense, ms | ratio to dense | operation limit | share of limit |",
        "|---|---|--:|--:|--:|--:|--:|",
    ]
    for row in rows:
        lines.append(
            f"| {row['shape']} | {row['phase']} | {row['rows']} | {1e3 * row['dense_seconds']:.3f} "
            f"| {row['ratio']:.2f} | {row['limit']:.2f} | {row['ratio'] / row['limit']:.2f} |"
        )
    return "\n".join(lines)


def document(path: Path) -> str:
    """One section for one result file of pytest-benchmark: the machine, the versions and the table."""
    result = json.loads(path.read_text())
    machine, rows = result["machine_info"], [bench["extra_info"] for bench in result["benchmarks"]]
    cpu = machine["cpu"]
    return "\n".join(
        [
            f"## {path.stem}",
            "",
            f"{cpu.get('brand_raw', machine['processor'])}, {cpu.get('count')} cores, {rows[0]['threads']} threads, "
            f"{machine['system']}, Python {machine['python_version']}, torch {machine['torch']}, "
            f"commit {result['commit_info']['id'][:12]}"
            f"{' with local changes' if result['commit_info']['dirty'] else ''}, {result['datetime'][:10]}; float32.",
            "",
            table(rows),
        ]
    )


if __name__ == "__main__":
    print("# Benchmarks\n\nWritten by `python -m benchmarks.report`; the numbers are those of the result files.\n")
    print("\n\n".join(document(Path(name)) for name in sys.argv[1:]))
