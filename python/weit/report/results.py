"""Kept results of comparisons: back from ``results.json``, and into one page of documentation."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from weit.compare import CompareConfig, Comparison
from weit.compare.summary import Outcome, Row
from weit.files import atomic_write
from weit.report.overview import overview
from weit.report.plots import plot_steps
from weit.report.text import table, verdicts
from weit.tasks import Metric

_PATHS = ("out", "root", "bank", "source", "small")
_SHOWN = ("steps", "batch_size", "lrs", "seeds", "fit_steps", "size", "smaller", "templates", "template_shape",
          "source_size", "small_size", "pretrain_steps", "pretrain_lr", "full_share", "teacher", "source_lr",
          "fit_lrs", "ligo_lrs", "evaluate_every", "mixed_precision")  # fmt: skip


def read_results(path: Path) -> tuple[Comparison, dict[str, str]]:
    """The comparison in a ``results.json`` that ``write_report`` wrote, and the machine that ran it.

    Raises:
        ValueError: damaged or of another form. OSError: not there.
    """
    try:
        found = json.loads(path.read_text())
        machine = found.pop("machine")
        config = {name: None if value is None else Path(value) if name in _PATHS else value
                  for name, value in found.pop("config").items()}  # fmt: skip
        for name in ("fit_lr", "ligo_lr"):  # there was one of each before several could be tried
            if name in config:
                config[f"{name}s"] = [config[name]]
        known = {each.name for each in fields(CompareConfig)}
        metrics = tuple(Metric(**metric) for metric in found.pop("metrics"))
        kept: dict[str, Any] = {name: value for name, value in config.items() if name in known}
        settings = CompareConfig(**kept)
        rows = [_row(row, metrics[0], settings) for row in found.pop("rows")]
        return Comparison(settings, metrics=metrics, rows=rows, **found), machine
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} holds no results of a comparison: {error}") from error


def _row(row: dict[str, Any], metric: Metric, config: CompareConfig) -> Row:
    outcomes = {}
    for name, outcome in row["outcomes"].items():
        only = config.own_rates(name)[0]  # older results do not say it
        curve = [tuple(point) for point in outcome["curve"]]
        outcomes[name] = Outcome(**{"start_lr": only, **outcome, "curve": curve, "metric": metric})
    return Row(**{**row, "outcomes": outcomes})


def write_page(results: Sequence[Path], page: Path, opening: str) -> None:
    """Write ``page`` (Markdown) with an overview and a section for each of ``results``, its plots beside it in ``img``.

    Raises:
        ValueError, OSError: as ``read_results``; ``page`` cannot be written.
    """
    read = [read_results(path) for path in results]
    sections = [opening.strip(), overview([(_title(comparison), comparison) for comparison, _ in read])]
    for path, (comparison, machine) in zip(results, read, strict=True):
        plot = page.parent / "img" / f"{path.stem}.png"
        plot.parent.mkdir(parents=True, exist_ok=True)
        plot_steps(comparison, plot)
        sections.append(_section(path, comparison, machine, f"img/{plot.name}", os.path.relpath(path, page.parent)))
    atomic_write(page, "\n\n".join(sections) + "\n")


def _title(comparison: Comparison) -> str:
    config = comparison.config
    return (
        f"{config.family.capitalize()}: {comparison.model} on {comparison.data}, {config.steps} steps "
        f"after {config.pretrain_steps} of pre-training"
        + (", the bank with a teacher" if config.teacher != "none" else "")
    )


def _section(path: Path, comparison: Comparison, machine: dict[str, str], plot: str, link: str) -> str:
    config = comparison.config
    settings = "; ".join(f"{name} {_plain(getattr(config, name))}" for name in _SHOWN)
    lines = [
        f"## {_title(comparison)}",
        f"{settings}. {_machine(machine)}, torch {machine['torch']}. [All numbers]({link}).",
        f"```\n{table(comparison)}\n```",
        "\n".join(f"- {sentence}" for sentence in verdicts(comparison)),
        f"![Learning curves of every target]({plot})",
    ]
    return "\n\n".join(lines)


def _machine(facts: dict[str, str]) -> str:
    gpu = facts.get("GPU", "none")
    return f"{facts['processor']}, {facts['cores']} cores" + (f", {gpu}" if gpu != "none" else "")


def _plain(value: object) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
