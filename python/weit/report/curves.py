"""What one run recorded, as curves."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from weit.engine.run_folder import METRICS, read_records
from weit.files import atomic_write

CURVES = "curves.png"


def plot_run(folder: Path) -> Path | None:
    """Draw each number in ``folder``'s records over the steps, loss first, into ``curves.png``; ``None`` without records.

    Raises:
        ValueError: a damaged record.
    """
    records = read_records(folder / METRICS)
    names = list(dict.fromkeys(name for record in records for name in record if name != "step"))
    if not names:
        return None
    figure = Figure(figsize=(4.2 * len(names), 3.2), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)  # no display, whatever the user's matplotlib is set to
    for axis, name in zip(figure.subplots(1, len(names), squeeze=False)[0], names, strict=True):
        points = [(record["step"], record[name]) for record in records if name in record]
        axis.plot(*zip(*points, strict=True), "o-" if len(points) == 1 else "-", color="#0072b2", linewidth=1.8)
        axis.set_title(name.replace("_", " "), fontsize=11)
        axis.set_xlabel("step")
        axis.grid(alpha=0.25)
        axis.spines[["top", "right"]].set_visible(False)
    path = folder / CURVES
    drawn = BytesIO()
    figure.savefig(drawn, format="png")
    atomic_write(path, drawn.getvalue())
    return path
