"""What a step minimises, and how it calls the model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

from torch import Tensor, nn

from weit.engine.data import Inputs, tensors_of

Loss: TypeAlias = Callable[[Tensor, Tensor], Tensor]
Objective: TypeAlias = Callable[[nn.Module, Inputs, Tensor, int], Tensor]
"""What a step minimises: (model, inputs, targets, step) → scalar; see ``outputs_of`` for how it calls the model."""


class Supervised:
    """The objective of plain training: ``loss(model(inputs), targets)``."""

    def __init__(self, loss: Loss) -> None:
        self.loss = loss

    def __call__(self, model: Callable[..., Any], inputs: Inputs, targets: Tensor, step: int) -> Tensor:
        return self.loss(outputs_of(model, inputs), targets)


class WithObjective(nn.Module):
    """Model and objective as one module, so that whatever wraps it for several processes sees the whole of a step."""

    def __init__(self, model: nn.Module, objective: Objective) -> None:
        super().__init__()
        self.model, self.objective = model, objective

    def forward(self, inputs: Inputs, targets: Tensor, step: int) -> Tensor:
        return self.objective(self.model, inputs, targets, step)


def outputs_of(model: Callable[..., Any], inputs: Inputs) -> Tensor:
    """What ``model`` makes of ``inputs``, one or several: the tensor itself, or ``.logits`` of a Hugging Face output."""
    output = model(*tensors_of(inputs))
    if isinstance(output, Tensor):
        return output
    if isinstance(getattr(output, "logits", None), Tensor):
        return output.logits
    raise TypeError(f"model must return a tensor, or an object with logits, got {type(output).__name__}")
