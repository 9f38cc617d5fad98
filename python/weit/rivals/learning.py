"""What the rivals that learn have in common: a model made of learned parts, soft targets, a few steps of training."""

from __future__ import annotations

import copy
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from weit.engine.config import TrainConfig
from weit.engine.data import Data, Inputs
from weit.engine.loop import train
from weit.engine.objective import Loss, Objective, outputs_of
from weit.pretrain import distillation


class Composed(nn.Module):
    """A model whose tensors are computed at every call from the parameters of this module.

    Args:
        skeleton: lends its forward pass; its own numbers are neither used nor changed.
    """

    def __init__(self, skeleton: nn.Module) -> None:
        super().__init__()
        self._skeleton = (skeleton,)  # in a tuple, so that its parameters are not taken for this module's

    def compose(self) -> dict[str, Tensor]:
        """A state dict for the skeleton."""
        raise NotImplementedError

    def forward(self, *inputs: Tensor) -> Any:
        with torch.autocast(inputs[0].device.type, enabled=False):  # norms take no parameters of 16 bits
            state = self.compose()
        return functional_call(self._skeleton[0], state, inputs)


class SoftTargets:
    """An objective for ``weit.engine.train``: the loss, and ``alpha`` times the distance from a teacher's answers.

    The distance is ``T² KL`` between the two as logits, unless another is given.

    Source: Hinton et al. 2015, "Distilling the knowledge in a neural network".
    """

    def __init__(
        self, teacher: nn.Module, loss: Loss, alpha: float, temperature: float, distance: Loss | None = None
    ) -> None:
        if not 0 <= alpha < float("inf"):
            raise ValueError(f"alpha must be from 0, got {alpha!r}")
        if not 0 < temperature < float("inf"):
            raise ValueError(f"temperature must be positive, got {temperature!r}")
        self.teacher = copy.deepcopy(teacher).eval().requires_grad_(False)
        self.loss, self.alpha = loss, alpha
        self.distance = distance or partial(distillation, temperature=temperature)

    def __call__(self, model: nn.Module, inputs: Inputs, targets: Tensor, step: int) -> Tensor:
        logits = outputs_of(model, inputs)
        with torch.no_grad():
            answers = outputs_of(self.teacher.to(logits.device), inputs)
        return self.loss(logits, targets) + self.alpha * self.distance(logits, answers)


def learn(
    model: nn.Module, data: Data | None, steps: int, *, loss: Loss, objective: Objective | None = None, **settings: Any
) -> None:
    """Train ``model`` for ``steps``, if any and if there is data; ``settings`` are fields of ``TrainConfig`` and progress.

    Raises:
        ValueError: negative ``steps``; see also ``weit.engine.train``.
    """
    if steps < 0:
        raise ValueError(f"steps must be an int from 0, got {steps!r}")
    if data is None or not steps:
        return
    progress = settings.pop("progress", False)
    train(model, data, TrainConfig(steps=steps, **settings), loss=loss, objective=objective, progress=progress)
