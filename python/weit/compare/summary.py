"""From the results of all cells to the numbers of the table, the curves and the verdicts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import inf
from statistics import fmean, stdev
from typing import Any

from weit.compare.welch import differ
from weit.tasks import Metric, Size

Curve = list[tuple[int, float]]

Rates = tuple[float, float | None]
"""A peak learning rate, and that of what is learned before step 0, if anything is."""

SEEN, SAME = "seen", "same size"
"""Said of a target of a size that the pre-training also ran at, and of one of the bank's own size."""


@dataclass(frozen=True)
class Outcome:
    """What one start did for one target, over all seeds.

    Attributes:
        lr: the learning rate that was best on the validation split.
        start_lr: likewise that of what was learned before step 0, if anything was.
        tests: the deciding score on the test split at the end, one for each seed.
        others: the same of the task's other metrics, by name; a run that diverged has none.
        curve: (step, mean score on the test split, standard deviation over seeds).
        extra_steps: work before step 0, in training steps of this target: fitting and the share of the pre-training.
        reached: first step of the mean curve that is where scratch's mean curve ends, if any is.
        metric: the deciding one.
    """

    initializer: str
    lr: float
    tests: list[float]
    others: dict[str, list[float]]
    curve: list[tuple[int, float, float]]
    extra_steps: float
    reached: int | None
    metric: Metric
    start_lr: float | None = None

    @property
    def mean(self) -> float:
        return fmean(self.tests)

    @property
    def spread(self) -> float:
        """Standard deviation over seeds; 0 for one seed."""
        return spread(self.tests)

    @property
    def steps(self) -> int:
        return self.curve[-1][0]

    def ahead_of(self, other: Outcome) -> int:
        """1 if ahead, -1 if behind, 0 if seeds do not tell the two apart; see ``weit.compare.welch.differ``."""
        if not differ(self.tests, other.tests):
            return 0
        return 1 if self.metric.better(self.mean, other.mean) else -1


@dataclass(frozen=True)
class Row:
    """One target with the outcome of every start.

    Attributes:
        flops: the price of a training step.
        kind: see ``kind_of``.
        absent: why a start has no outcome, for each that cannot serve this target.
    """

    target: str
    kind: str
    parameters: int
    flops: int
    outcomes: dict[str, Outcome]
    absent: dict[str, str] = field(default_factory=dict)


def best_rates(validation: Mapping[Rates, float | None], metric: Metric) -> Rates:
    """The rates with the best score; of equals the smallest, and those at which training blew up are last."""
    sign = -1 if metric.higher else 1
    scores = {rates: inf if score is None else sign * score for rates, score in validation.items()}
    return min(scores, key=lambda rates: (scores[rates], rates[0], rates[1] or 0))


def spread(values: list[float]) -> float:
    """Standard deviation; 0 for one value."""
    return stdev(values) if len(values) > 1 else 0.0


def summarize(
    target: str,
    kind: str,
    flops: int,
    cells: dict[str, tuple[Rates, list[dict[str, Any]]]],
    extra_steps: dict[str, float],
    metrics: tuple[Metric, ...],
    absent: dict[str, str] | None = None,
) -> Row:
    """The row of one target; ``cells``: start -> its learning rates and the result of each seed's cell."""
    metric, *more = metrics
    final = fmean(cell["curve"][-1][1] for cell in cells["scratch"][1])  # measured like the other points
    outcomes = {}
    for name, ((lr, start_lr), results) in cells.items():
        curve = _mean_curve([cell["curve"] for cell in results])
        reached = next((step for step, score, _ in curve if not metric.better(final, score)), None)
        tests, *others = (
            [cell["test"][each.name] for cell in results if each.name in cell["test"]] for each in metrics
        )
        named = {each.name: found for each, found in zip(more, others, strict=True)}
        outcomes[name] = Outcome(name, lr, tests, named, curve, extra_steps[name], reached, metric, start_lr)
    return Row(target, kind, cells["scratch"][1][0]["parameters"], flops, outcomes, absent or {})


def kind_of(size: Size, pretrained: Mapping[str, Any], seen: Sequence[Size], default: Mapping[str, Any]) -> str:
    """How a target differs from the model that was pre-trained, in words.

    Args:
        size, pretrained: of the target, and of that model.
        seen: other sizes that the pre-training ran at.
        default: what sizes are where none is given.
    """
    size, pretrained = {**default, **size}, {**default, **pretrained}
    words = {"width": ("narrower", "wider"), "depth": ("shallower", "deeper")}
    found = []
    for name, value in size.items():
        base = pretrained.get(name, value)
        if value != base:
            smaller, larger = words.get(name, (f"smaller {name}", f"larger {name}"))
            found.append(smaller if _amount(value) < _amount(base) else larger)
    words_found = " and ".join(sorted(found)) or SAME
    return f"{words_found}, {SEEN}" if size in [{**default, **each} for each in seen] else words_found


def _amount(value: int | list[int]) -> int:
    return sum(value) if isinstance(value, list) else value


def _mean_curve(curves: list[Curve]) -> list[tuple[int, float, float]]:
    points = []
    for at_one_step in zip(*curves, strict=True):
        scores = [score for _, score in at_one_step]
        points.append((at_one_step[0][0], fmean(scores), spread(scores)))
    return points
