"""What the rivals that learn have in common: a model made of learned parts, a few steps of training."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from weit.engine.config import TrainConfig
from weit.engine.data import Data
from weit.engine.loop import train
from weit.engine.objective import Loss, Objective


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
