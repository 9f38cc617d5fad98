"""What a family of tasks is to the rest of the package: data, loss and score, behind one interface."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch
from torch import nn

from weit.engine import Data
from weit.engine.modes import kept_modes
from weit.engine.objective import Loss
from weit.models.sizes import Size

SPLITS = ("validation", "test")


@dataclass(frozen=True)
class Metric:
    """One number of an evaluation.

    Attributes:
        name: its key in what ``Task.evaluate`` returns.
        label: in tables and plots, with its unit.
        higher: whether more is better.
        scale: what the number is multiplied by to be shown.
        digits: shown after the point.
    """

    name: str
    label: str
    higher: bool = True
    scale: float = 1.0
    digits: int = 2

    def show(self, value: float, sign: str = "") -> str:
        """``value`` as text; ``sign="+"`` shows the sign of a difference."""
        return f"{value * self.scale:{sign}.{self.digits}f}"

    def better(self, one: float, other: float) -> bool:
        """Whether ``one`` beats ``other``."""
        return one > other if self.higher else one < other


class Task(ABC):
    """Data with fixed splits, what a model for it needs, and how it is trained and scored.

    A new family is a subclass and its line in ``weit.tasks.FAMILIES``; trainer, rivals and comparison know no more.

    Attributes:
        name: of the data, as ``load_task`` takes it.
        family: as ``load_task`` takes it.
        model: of ``create_model``, if the user names none.
        metrics: what ``evaluate`` gives; the first one decides.
        train: as ``weit.engine.train`` takes it.
        loss: (outputs, targets) → scalar, the mean over the items.
        distance: (outputs, teacher's outputs) → scalar, for soft targets; ``None`` where outputs are logits.
        options: of ``load_task``, such as the size that images are brought to; JSON.
    """

    name: str
    family: str
    model: str
    metrics: tuple[Metric, ...]
    train: Data
    loss: Loss
    distance: Loss | None
    options: Mapping[str, Any] = MappingProxyType({})

    @abstractmethod
    def arguments(self, model: str, size: Size) -> dict[str, Any]:
        """Arguments of ``create_model`` for a ``model`` of that size; ``ValueError`` for one that cannot do this task."""

    @abstractmethod
    def evaluate(self, model: nn.Module, split: str, *, quick: bool = False) -> dict[str, float]:
        """Scores of ``model`` on ``"validation"`` or ``"test"``, always measured alike; its mode is put back after.

        ``quick``: a cheaper measurement, for learning curves; it has the first metric at least.
        """


@contextmanager
def evaluating(model: nn.Module) -> Iterator[torch.device]:
    """Evaluation mode and no gradients for ``model``; gives the device it is on."""
    with kept_modes(model), torch.inference_mode():
        model.eval()
        yield next(model.parameters()).device


def check_split(split: str) -> None:
    """Raise ``ValueError`` unless ``split`` is one of ``SPLITS``."""
    if split not in SPLITS:
        raise ValueError(f"split must be one of {', '.join(SPLITS)}, got {split!r}")
