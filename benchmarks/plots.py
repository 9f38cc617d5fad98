"""Plots of a result file: how cost grows, and this package beside its peers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import cycle
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import LogFormatter

from benchmarks.tables import AUTO, by_fastest, cases

Row = Mapping[str, Any]
OURS, DENSE = "#0072b2", "#555555"  # after Okabe and Ito
MARKS = "osv^D<>P*X"


def draw(rows: Sequence[Row], folder: Path, prefix: str = "") -> dict[str, Path]:
    """Write PNG files into ``folder``; title → file, for those plots that have anything to show."""
    folder.mkdir(parents=True, exist_ok=True)
    found = {}
    if growth := [row for row in rows if row.get("suite") == "growth"]:
        found["How cost grows"] = folder / f"{prefix}growth.png"
        _growth(growth, found["How cost grows"])
    if any(row.get("suite") == "peers" for row in rows):
        found["Beside peers"] = folder / f"{prefix}peers.png"
        _peers(rows, found["Beside peers"])
    return found


def _growth(rows: Sequence[Row], path: Path) -> None:
    """One panel for each size that varies, both axes logarithmic."""
    panels: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        panels.setdefault((row["what"], row["axis"]), []).append(row)
    columns = min(3, len(panels))
    figure, axes = _figure(-(-len(panels) // columns), columns)
    for axis, ((what, size), points) in zip(axes, panels.items(), strict=False):
        points = sorted(points, key=lambda row: row["value"])
        values = [row["value"] for row in points]
        for label, whose, colour in (("dense", "dense_", DENSE), ("weit", "", OURS)):
            seconds = [1e3 * row[f"{whose}seconds"] for row in points]
            axis.errorbar(values, seconds, _bars(points, whose), color=colour, label=label, marker="o", capsize=2)
        axis.set_xscale("log", base=2)
        axis.set_xticks(values, [f"{value}" for value in values])
        axis.set_yscale("log")
        axis.yaxis.set_major_formatter("{x:g}")
        axis.yaxis.set_minor_formatter(LogFormatter(minor_thresholds=(1.5, 0.5)))  # as many labels as there is room for
        axis.set_title(f"{what}: {size}", fontsize=10)
        axis.set_ylabel("ms")
        axis.grid(alpha=0.25, which="both")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=2, frameon=False)
    figure.savefig(path)


def _bars(rows: Sequence[Row], whose: str) -> list[list[float]]:
    """In ms, down and up: from the fastest rounds to the median, or half an interquartile range around the median."""
    if by_fastest(rows):
        return [[0.0] * len(rows), [1e3 * (row[f"{whose}median"] - row[f"{whose}seconds"]) for row in rows]]
    return [[500 * row[f"{whose}iqr"] for row in rows]] * 2


def _peers(rows: Sequence[Row], path: Path) -> None:
    """Ratios to the dense layer, one line of marks a case."""
    found = cases(rows, ("peers",))
    names = list(dict.fromkeys(name for contenders in found.values() for name in contenders))
    figure, (axis,) = _figure(1, 1, width=9.0, height=max(3.0, 1.2 + 0.34 * len(found)))
    for mark, name in zip(cycle(MARKS), names, strict=False):
        points = [(contenders[name]["ratio"], i) for i, contenders in enumerate(found.values()) if name in contenders]
        colour = OURS if name == AUTO else None
        label = "weit, auto" if name == AUTO else name
        axis.plot(
            *zip(*points, strict=True), mark, color=colour, label=label, linestyle="none", zorder=3 - (name != AUTO)
        )
    axis.axvline(1.0, color=DENSE, linewidth=1)
    axis.set_xscale("log")
    rows_of = [next(iter(contenders.values()))["rows"] for contenders in found.values()]
    labels = [f"{shape}, {phase}, {count} rows" for (shape, phase), count in zip(found, rows_of, strict=True)]
    axis.set_yticks(range(len(found)), labels)
    axis.invert_yaxis()
    axis.set_xlabel("times as fast as the dense layer")
    axis.grid(alpha=0.25)
    figure.legend(loc="outside right upper", frameon=False)
    figure.savefig(path)


def _figure(lines: int, columns: int, width: float = 4.0, height: float = 3.0) -> tuple[Figure, list[Axes]]:
    figure = Figure(figsize=(width * columns, height * lines), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)  # no display, whatever the user's matplotlib is set to
    axes = [*figure.subplots(lines, columns, squeeze=False).flat]
    return figure, axes
