"""A result file as one HTML page, plots inside.

python -m benchmarks.html RESULTS.json [--out FOLDER]
"""

from __future__ import annotations

import argparse
import base64
from collections.abc import Sequence
from pathlib import Path

import jinja2

from benchmarks.plots import draw
from benchmarks.results_file import Results
from weit.files import atomic_write


def write(results: Results, out: Path) -> Path:
    """Write ``report.html`` and the plots to the folder ``out``; returns the path of the page."""
    plots = draw(results.rows, out)
    template = Path(__file__).with_name("report.html.j2").read_text(encoding="utf-8")
    page = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined).from_string(template)
    path = out / "report.html"
    atomic_write(
        path,
        page.render(
            warning=results.warning,
            reading=results.reading(),
            tables=results.tables(),
            plots={title: base64.b64encode(plot.read_bytes()).decode() for title, plot in plots.items()},
            machine=results.machine,
        ),
    )
    return path


def main(argv: Sequence[str] | None = None) -> None:
    """Write the page of one result file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path)
    parser.add_argument("--out", type=Path, help="by default the result file's folder")
    args = parser.parse_args(argv)
    print(write(Results.read(args.results), args.out or args.results.parent))


if __name__ == "__main__":
    main()
