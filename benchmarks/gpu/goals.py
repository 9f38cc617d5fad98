"""The table, the geometric means, and whether the goals are met: printed, never asserted."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.gpu.contenders import AUTO, COMPILED, DENSE, FORCED, MATERIALISED

WORKSPACE = 32 << 20
Row = Mapping[str, Any]


@dataclass(frozen=True)
class Goal:
    """One goal over some rows: what was reached, and which rows miss it; ``met`` is ``None`` without figures."""

    name: str
    met: bool | None
    reached: str

    def __str__(self) -> str:
        word = {True: "met", False: "missed", None: "no figures"}[self.met]
        return f"{word:<11}{self.name}: {self.reached}"


def geometric_mean(values: Iterable[float]) -> float | None:
    """``None`` of nothing."""
    logs = [math.log(value) for value in values]
    return math.exp(sum(logs) / len(logs)) if logs else None


def figure(row: Row, name: str, key: str = "ratio") -> Any:
    """A contender's figure in a row; ``None`` where it has none."""
    return row["contenders"].get(name, {}).get(key)


def judge(rows: Sequence[Row]) -> list[Goal]:
    """All goals, for linear layers and for convolutions."""
    goals = []
    for kind in ("linear", "conv2d"):
        many = [row for row in rows if row["kind"] == kind and not row["few_rows"]]
        forward = [row for row in many if row["phase"] == "forward"]
        train = [row for row in many if row["phase"] == "train"]
        goals += [
            _mean(f"{kind} forward, geometric mean of ratios >= 1.5", forward, 1.5),
            _each(f"{kind} forward, each >= 0.6 of its operation limit", forward, lambda row: 0.6 * row["limit"]),
            _each(f"{kind} forward, none < 0.95 of dense", forward, lambda _: 0.95),
            _mean(f"{kind} training step, geometric mean of ratios >= 1.3", train, 1.3),
            _each(f"{kind} training step, none < 0.9 of dense", train, lambda _: 0.9),
        ]
    graphs = [row for row in rows if row["phase"] == "graph"]
    goals.append(_mean("few rows, CUDA graphs, L2 flushed, geometric mean of ratios >= 4", graphs, 4.0))
    goals.append(_workspace([row for row in rows if not row["phase"].startswith("graph")]))
    return goals


def _missing(rows: Sequence[Row], key: str) -> list[str]:
    return [_label(row) for row in rows if figure(row, AUTO, key) is None]


def _label(row: Row) -> str:
    return f"{row['shape']} {row['phase']}"


def _mean(name: str, rows: Sequence[Row], bound: float) -> Goal:
    mean = geometric_mean(ratio for row in rows if (ratio := figure(row, AUTO)) is not None)
    if mean is None:
        return Goal(name, None, "nothing measured")
    missing = _missing(rows, "ratio")
    return Goal(name, mean >= bound and not missing, f"{mean:.2f}{_without(missing)}")


def _each(name: str, rows: Sequence[Row], bound_of: Any) -> Goal:
    measured = [(row, ratio, bound_of(row)) for row in rows if (ratio := figure(row, AUTO)) is not None]
    if not measured:
        return Goal(name, None, "nothing measured")
    below = [f"{row['shape']} {ratio:.2f} < {bound:.2f}" for row, ratio, bound in measured if ratio < bound]
    missing = _missing(rows, "ratio")
    reached = "; ".join(below) or f"all {len(measured)}"
    return Goal(name, not below and not missing, reached + _without(missing))


def _workspace(rows: Sequence[Row]) -> Goal:
    name = "workspace <= 32 MiB"
    measured = [(row, size) for row in rows if (size := figure(row, AUTO, "workspace_bytes")) is not None]
    if not measured:
        return Goal(name, None, "nothing measured")
    above = [f"{_label(row)} {size / 2**20:.1f} MiB" for row, size in measured if size > WORKSPACE]
    missing = _missing(rows, "workspace_bytes")
    reached = "; ".join(above) or f"most {max(size for _, size in measured) / 2**20:.1f} MiB"
    return Goal(name, not above and not missing, reached + _without(missing))


def _without(missing: Sequence[str]) -> str:
    return f" (no figure: {', '.join(missing)})" if missing else ""


def table(rows: Sequence[Row]) -> str:
    """A Markdown table: ``auto`` beside the dense layer, the operation limit, and the other contenders' ratios."""
    lines = [
        "| shape | phase | rows | dense, ms | auto, ms | ratio | limit | share | plan | best path "
        "| materialised | compiled | workspace, MiB | error |",
        "|---|---|--:|--:|--:|--:|--:|--:|---|---|--:|--:|--:|--:|",
    ]
    for row in rows:
        ratio, error, workspace = figure(row, AUTO), figure(row, AUTO, "error"), figure(row, AUTO, "workspace_bytes")
        cells = [
            row["shape"],
            row["phase"],
            str(row["rows"]),
            number(figure(row, DENSE, "seconds"), 1e3, 4),
            number(figure(row, AUTO, "seconds"), 1e3, 4),
            number(ratio),
            number(row["limit"]),
            number(ratio and ratio / row["limit"]),
            figure(row, AUTO, "plan") or "",
            _best(row),
            number(figure(row, MATERIALISED)),
            number(figure(row, COMPILED)),
            number(workspace, 1 / 2**20, 1),
            "" if error is None else f"{error:.1e}",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _best(row: Row) -> str:
    ratios = {name: ratio for name in FORCED if (ratio := figure(row, name)) is not None}
    best = max(ratios, key=lambda name: ratios[name], default=None)
    return "" if best is None else f"{best} {ratios[best]:.2f}"


def number(value: float | None, scale: float = 1.0, digits: int = 2) -> str:
    """A cell of a table; empty without a figure."""
    return "" if value is None else f"{value * scale:.{digits}f}"


def failures(rows: Sequence[Row]) -> list[str]:
    """One line for each message that contenders have instead of a figure, and who has it."""
    who: dict[str, list[str]] = {}
    for row in rows:
        if "failed" in row:
            who.setdefault(row["failed"], []).append(_label(row))
        for name, figures in row["contenders"].items():
            if "failed" in figures:
                who.setdefault(figures["failed"], []).append(f"{_label(row)} {name}")
    return [f"{message} ({len(names)}: {', '.join(names[:4])})" for message, names in who.items()]


def summary(rows: Sequence[Row], not_run: Sequence[str]) -> str:
    """All that is printed at the end."""
    parts = [table(rows), "\n".join(map(str, judge(rows)))]
    if failed := failures(rows):
        parts.append("\n".join(["Failed:", *failed]))
    if not_run:
        parts.append("\n".join([f"Not run, the time was up ({len(not_run)}):", *not_run[:6]]))
    return "\n\n".join(parts)
