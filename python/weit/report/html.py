"""One HTML file with everything in it."""

from __future__ import annotations

import base64
import json
import os
import platform
from collections.abc import Sequence
from dataclasses import asdict
from importlib.resources import files
from pathlib import Path
from typing import Any

import jinja2
import numpy
import torch

from weit.compare import Comparison
from weit.files import atomic_write
from weit.report.plots import plot_steps, plot_work
from weit.report.text import LABELS, cells, headings, table, verdicts
from weit_kernels import __version__


def write_report(comparison: Comparison, out: Path, notes: Sequence[str] = ()) -> Path:
    """Write ``table.txt``, ``results.json``, two plots and ``report.html`` to ``out``; returns the path of the last.

    Args:
        notes: sentences to add to the verdicts.

    Raises:
        OSError: ``out`` cannot be written.
    """
    out.mkdir(parents=True, exist_ok=True)
    plots = {"By training step": out / "curves-steps.png", "By total work": out / "curves-work.png"}
    for draw, path in zip((plot_steps, plot_work), plots.values(), strict=True):
        draw(comparison, path)
    sentences = [*verdicts(comparison), *notes]
    atomic_write(out / "table.txt", table(comparison) + "\n\n" + "\n".join(sentences) + "\n")
    results = {**_plain(asdict(comparison)), "machine": machine()}
    atomic_write(out / "results.json", json.dumps(results, indent=1) + "\n")
    pick = max if comparison.metrics[0].higher else min
    best = {row.target: pick(outcome.mean for outcome in row.outcomes.values()) for row in comparison.rows}
    lines = [
        {"texts": texts, "first": texts[3] == LABELS[comparison.config.starts[0]],
         "rows": len(comparison.config.starts), "weit": texts[3] == LABELS["weit"],
         "best": outcome is not None and outcome.mean == best[row.target]}
        for row, outcome, texts in cells(comparison)
    ]  # fmt: skip
    page = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined).from_string(
        files("weit.report").joinpath("report.html.j2").read_text(encoding="utf-8")
    )
    path = out / "report.html"
    atomic_write(
        path,
        page.render(
            config=comparison.config,
            data=comparison.data,
            model=comparison.model,
            headings=headings(comparison),
            lines=lines,
            sentences=sentences,
            pretrained=comparison.pretrained,
            plots={title: base64.b64encode(plot.read_bytes()).decode() for title, plot in plots.items()},
            settings=_plain(asdict(comparison.config)),
            machine=machine(),
        ),
    )
    return path


def machine() -> dict[str, str]:
    """What ran this, in words."""
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "none"
    return {
        "processor": _processor(),
        "cores": str(os.cpu_count()),
        "GPU": gpu,
        "system": platform.platform(),
        "Python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": numpy.__version__,
        "weit": __version__,
    }


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass  # not Linux
    return platform.processor() or platform.machine()


def _plain(value: Any) -> Any:
    """``value`` with paths as text, for JSON."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value
