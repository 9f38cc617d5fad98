"""From the results of all cells to the numbers of the table, the curves and the verdicts."""

from __future__ import annotations

from dataclasses import dataclass, field
from statistics import fmean, stdev
from typing import Any

Curve = list[tuple[int, float]]


@dataclass(frozen=True)
class Outcome:
    """What one initialiser did for one target, over all seeds.

    Attributes:
        lr: the learning rate that was best on the validation split.
        tests: test accuracy at the end, one for each seed.
        curve: (step, mean test accuracy, standard deviation over seeds).
        extra_steps: work before step 0, in training steps of this target: fitting and the share of the pre-training.
        reached: first step of the mean curve that is at scratch's final mean accuracy, if any is.
    """

    initializer: str
    lr: float
    tests: list[float]
    curve: list[tuple[int, float, float]]
    extra_steps: float
    reached: int | None

    @property
    def mean(self) -> float:
        return fmean(self.tests)

    @property
    def spread(self) -> float:
        """Standard deviation over seeds; 0 for one seed."""
        return stdev(self.tests) if len(self.tests) > 1 else 0.0

    @property
    def steps(self) -> int:
        return self.curve[-1][0]

    def ahead_of(self, other: Outcome) -> int:
        """1 if ahead, -1 if behind, 0 if the means differ by no more than the two spreads together."""
        difference, noise = self.mean - other.mean, (self.spread**2 + other.spread**2) ** 0.5
        return 0 if abs(difference) <= noise else 1 if difference > 0 else -1


@dataclass(frozen=True)
class Row:
    """One target with the outcome of every initialiser.

    Attributes:
        flops: the price of a training step.
        absent: why an initialiser has no outcome, for each that cannot serve this target.
    """

    target: str
    kind: str
    parameters: int
    flops: int
    outcomes: dict[str, Outcome]
    absent: dict[str, str] = field(default_factory=dict)


def best_lr(validation: dict[float, float]) -> float:
    """The learning rate with the best accuracy; of equals the smallest."""
    return min(validation, key=lambda lr: (-validation[lr], lr))


def summarize(
    target: str,
    kind: str,
    flops: int,
    cells: dict[str, tuple[float, list[dict[str, Any]]]],
    extra_steps: dict[str, float],
    absent: dict[str, str] | None = None,
) -> Row:
    """The row of one target; ``cells``: initialiser -> its learning rate and the result of each seed's cell."""
    final = fmean(cell["test"] for cell in cells["scratch"][1])
    outcomes = {}
    for name, (lr, results) in cells.items():
        curve = _mean_curve([cell["curve"] for cell in results])
        reached = next((step for step, accuracy, _ in curve if accuracy >= final), None)
        tests = [cell["test"] for cell in results]
        outcomes[name] = Outcome(name, lr, tests, curve, extra_steps[name], reached)
    return Row(target, kind, cells["scratch"][1][0]["parameters"], flops, outcomes, absent or {})


def kind_of(size: dict[str, int], pretrained: dict[str, Any]) -> str:
    """How a target differs from the model that was pre-trained, in words."""
    words = {"width": ("narrower", "wider"), "depth": ("shallower", "deeper")}
    found = []
    for name, value in size.items():
        base = pretrained.get(name, value)
        if value != base:
            smaller, larger = words.get(name, (f"smaller {name}", f"larger {name}"))
            found.append(smaller if value < base else larger)
    return " and ".join(sorted(found)) or "same size"


def _mean_curve(curves: list[Curve]) -> list[tuple[int, float, float]]:
    points = []
    for at_one_step in zip(*curves, strict=True):
        accuracies = [accuracy for _, accuracy in at_one_step]
        points.append((at_one_step[0][0], fmean(accuracies), stdev(accuracies) if len(accuracies) > 1 else 0.0))
    return points
