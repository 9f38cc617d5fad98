"""Learning curves of every target, by training step and by total work."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from weit.compare import Comparison
from weit.compare.config import LONGER, WEIT
from weit.compare.summary import Outcome
from weit.files import atomic_write
from weit.report.text import LABELS

_COLOURS = {
    "scratch": "#555555",
    LONGER: "#9a9a9a",
    "weight_selection": "#d98200",
    "ligo": "#009e73",
    "bert2bert": "#cc79a7",
    "mimetic": "#8c6d31",
    "tleg": "#56b4e9",
    "distillation": "#d55e00",
    WEIT: "#0072b2",
}  # after Okabe and Ito


def plot_steps(comparison: Comparison, path: Path) -> None:
    """Test score against training steps on one schedule; scratch that trains longer has another and is left out."""
    names = [name for name in comparison.config.starts if name != LONGER]
    _plot(comparison, path, names, "training steps", by_work=False)


def plot_work(comparison: Comparison, path: Path) -> None:
    """Test score against total work, in training steps of each target: a curve starts where its preparation ends."""
    _plot(comparison, path, comparison.config.starts, "total work, in training steps of this target", by_work=True)


def _plot(comparison: Comparison, path: Path, names: list[str], xlabel: str, by_work: bool) -> None:
    columns = min(3, len(comparison.rows))
    lines = -(-len(comparison.rows) // columns)
    figure = Figure(figsize=(4.2 * columns, 3.0 * lines + 0.9), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)  # no display, whatever the user's matplotlib is set to
    axes = figure.subplots(lines, columns, squeeze=False, sharey=True)
    for axis, row in zip(axes.flat, comparison.rows, strict=False):
        for name in names:
            if name in row.outcomes:
                _draw(axis, row.outcomes[name], by_work)
        axis.set_title(f"{row.target} ({row.kind})", fontsize=11)
        axis.grid(alpha=0.25)
        axis.spines[["top", "right"]].set_visible(False)
    for axis in axes.flat[len(comparison.rows) :]:
        axis.set_visible(False)
    for axis in axes[:, 0]:
        axis.set_ylabel(f"test {comparison.metrics[0].label}")
    figure.supxlabel(xlabel, fontsize=11)
    drawn = [pair for axis in axes.flat for pair in zip(*axis.get_legend_handles_labels(), strict=True)]
    handles = {label: handle for handle, label in drawn}  # no target needs to have them all
    labels = [LABELS[name] for name in names if LABELS[name] in handles]
    figure.legend(
        [handles[label] for label in labels],
        labels,
        loc="outside upper center",
        ncols=min(len(names), 5),
        frameon=False,
    )
    picture = BytesIO()
    figure.savefig(picture, format="png")
    atomic_write(path, picture.getvalue())


def _draw(axis: Axes, outcome: Outcome, by_work: bool) -> None:
    offset = outcome.extra_steps if by_work else 0.0
    steps = [step + offset for step, _, _ in outcome.curve]
    scale = outcome.metric.scale
    low, mean, high = zip(*((scale * (m - s), scale * m, scale * (m + s)) for _, m, s in outcome.curve), strict=True)
    style = "--" if outcome.initializer == LONGER else "-"
    colour = _COLOURS[outcome.initializer]
    axis.plot(steps, mean, style, color=colour, label=LABELS[outcome.initializer], linewidth=1.8)
    axis.fill_between(steps, low, high, color=colour, alpha=0.15, linewidth=0)
