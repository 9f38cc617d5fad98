"""Result files as Markdown with plots: how docs/benchmarks.md is made.

    python -m benchmarks.report RESULTS.json [MORE.json ...] [--out docs/benchmarks.md] [--plots docs/img]

Nothing is typed by hand: every number is a result file's. A file called like another one, with "-again" before its
suffix, is a second run of that one: its ratios are compared with the first run's.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

from benchmarks.plots import draw
from benchmarks.results_file import Results
from benchmarks.tables import by_fastest
from weit.files import atomic_write

_AGAIN = "-again"
_HEAD = "# Benchmarks\n\nWritten by `python -m benchmarks.report`; the numbers are those of the result files.\n"


def document(results: Results, plots: dict[str, str], again: Results | None = None) -> str:
    """One section for one result file: the machine, every table, and the plots by title and path."""
    facts = ", ".join(f"{name} {value}" for name, value in results.machine.items())
    parts = [f"## {results.name}", facts + ".", results.reading(again)]
    if results.warning:
        parts.append(f"**{results.warning}**")
    for table in results.tables(again):
        parts += [f"### {table.title}", table.note, table.markdown()]
    parts += [f"### {title}\n\n![{title}]({path})" for title, path in plots.items()]
    return "\n\n".join(parts)


def _by_name(paths: Sequence[Path]) -> dict[str, Results]:
    """Raises ``ValueError`` for a file that is none, two of one name, or a second run that measured something else."""
    found: dict[str, Results] = {}
    for results in map(Results.read, paths):
        if results.name in found:
            raise ValueError(f"two files are called {results.name}")
        found[results.name] = results
    for name, results in found.items():
        first = found.get(name.removesuffix(_AGAIN), results)
        for what in ("device", "dtype", "quick"):
            if results.data["weit"][what] != first.data["weit"][what]:
                raise ValueError(f"{name} is no second run of {first.name}: they differ in {what}")
        if by_fastest(results.rows) != by_fastest(first.rows):
            raise ValueError(
                f"{name} is no second run of {first.name}: one has medians, one what the fastest rounds take"
            )
    return found


def main(argv: Sequence[str] | None = None) -> None:
    """Write the document and its plots; exits with status 1 and one line if a file is no result file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", nargs="+", type=Path)
    parser.add_argument("--out", type=Path, default=Path("docs/benchmarks.md"))
    parser.add_argument("--plots", type=Path, default=Path("docs/img"))
    args = parser.parse_args(argv)
    try:
        found = _by_name(args.results)
    except ValueError as error:
        raise SystemExit(str(error)) from None
    sections = []
    for results in sorted(found.values(), key=lambda results: results.name):  # what adds to a run follows it
        if results.name.removesuffix(_AGAIN) in found.keys() - {results.name}:
            continue
        plots = draw(results.rows, args.plots, f"benchmarks-{results.name}-")
        relative = {title: os.path.relpath(plot, args.out.parent) for title, plot in plots.items()}
        sections.append(document(results, relative, found.get(results.name + _AGAIN)))
    atomic_write(args.out, "\n".join([_HEAD, "\n\n".join(sections), ""]))
    print(f"{args.out}: {len(sections)} result files")


if __name__ == "__main__":
    main()
