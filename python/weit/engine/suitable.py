"""Whether data suit a model and a loss, asked of one item before the first step."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from weit.engine.data import Batches, tensors_of
from weit.engine.modes import kept_modes
from weit.engine.objective import Loss, outputs_of


def check_suitable(
    model: nn.Module, batches: Batches, loss: Loss, autocast: AbstractContextManager[Any] | None = None
) -> None:
    """Run ``model`` on the first item, and where ``loss`` is cross-entropy check the targets, now and in each batch to come.

    Args:
        model: left in its modes, and run where it is in evaluation mode, without gradients.
        autocast: what it is to run in.

    Raises:
        ValueError: the model refuses the item; targets of another shape than its outputs ask for; labels without an output.
        TypeError: targets that are neither int64 labels nor probabilities; outputs that are no tensor.
    """
    inputs, targets = batches.example
    device = next(model.parameters()).device
    with kept_modes(model), torch.no_grad(), autocast or nullcontext():
        model.eval()
        outputs = outputs_of(partial(_ask, model), tuple(tensor.to(device) for tensor in tensors_of(inputs)))
    if loss is F.cross_entropy or type(loss) is nn.CrossEntropyLoss:  # a subclass may take other targets
        _check_targets(targets, outputs)
        if not targets.is_floating_point():
            batches.limit_labels(outputs.shape[1], getattr(loss, "ignore_index", -100))  # torch's default


def _ask(model: nn.Module, *inputs: Tensor) -> Any:
    """What ``model`` answers; if it refuses, that is said in words about the data."""
    try:
        return model(*inputs)
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, ValueError, TypeError, IndexError, AssertionError) as error:
        given = ", ".join(map(_described, inputs))
        dtype, reason = _name(next(model.parameters()).dtype), " ".join(str(error).split())
        raise ValueError(
            f"data must suit model, which is of {dtype}, but it refuses an item with inputs {given}: {reason}"
        ) from error


def _check_targets(targets: Tensor, outputs: Tensor) -> None:
    if outputs.dim() < 2:
        raise ValueError(f"model must give one output a class for cross-entropy, got {_described(outputs)} for an item")
    of_labels = (outputs.shape[0], *outputs.shape[2:])
    expected = f"labels {of_labels} of int64, or probabilities {tuple(outputs.shape)}, for an item"
    wrong = f"targets must be {expected}, got {_described(targets)}"
    if targets.is_floating_point():
        unknown, shape = targets.dim() < outputs.dim(), tuple(outputs.shape)
    else:
        unknown, shape = targets.dtype not in (torch.int64, torch.uint8), of_labels  # what torch takes
    if unknown:
        raise TypeError(wrong)
    if targets.shape != shape:
        raise ValueError(wrong)


def _described(tensor: Tensor) -> str:
    return f"{tuple(tensor.shape)} of {_name(tensor.dtype)}"


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
