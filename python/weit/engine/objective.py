"""What a step minimises, and how it calls the model."""

from __future__ import annotations

import copy
from collections.abc import Callable
from itertools import chain
from typing import Any, TypeAlias

import torch
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
        outputs = outputs_of(model, inputs)
        self.loss = placed(self.loss, outputs.device)
        return self.loss(outputs, targets)


class WithObjective(nn.Module):
    """Model and objective as one module, so that whatever wraps it for several processes sees the whole of a step."""

    def __init__(self, model: nn.Module, objective: Objective) -> None:
        super().__init__()
        self.model, self.objective = model, objective

    def forward(self, inputs: Inputs, targets: Tensor, step: int) -> Tensor:
        return self.objective(self.model, inputs, targets, step)


def placed(loss: Loss, device: torch.device) -> Loss:
    """``loss`` with its tensors, such as weights of classes, on ``device``: a copy, unless they are there already."""
    if not isinstance(loss, nn.Module):
        return loss
    if all(tensor.device == device for tensor in chain(loss.parameters(), loss.buffers())):
        return loss
    return copy.deepcopy(loss).to(device)


def outputs_of(model: Callable[..., Any], inputs: Inputs) -> Tensor:
    """What ``model`` makes of ``inputs``, one or several: the tensor itself, or ``.logits`` of a Hugging Face output."""
    output = model(*tensors_of(inputs))
    if isinstance(output, Tensor):
        return output
    if isinstance(getattr(output, "logits", None), Tensor):
        return output.logits
    raise TypeError(f"model must return a tensor, or an object with logits, got {type(output).__name__}")
