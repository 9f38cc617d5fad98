"""Distillation: what a student learns from a trained model's answers, beside the task's own loss."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from weit.engine.data import Inputs
from weit.engine.objective import Loss, outputs_of, placed


class SoftTargets:
    """An objective for ``weit.engine.train``: the loss, and ``alpha`` times the distance from a teacher's answers.

    The distance is ``T² KL`` between the two as logits, unless another is given.

    Raises:
        ValueError: ``alpha`` or ``temperature`` out of range.

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

    def __call__(self, model: Callable[..., Any], inputs: Inputs, targets: Tensor, step: int) -> Tensor:
        logits = outputs_of(model, inputs)
        with torch.no_grad():
            answers = outputs_of(self.teacher.to(logits.device), inputs)
        self.loss, self.distance = (placed(each, logits.device) for each in (self.loss, self.distance))
        return self.loss(logits, targets) + self.alpha * self.distance(logits, answers)


def distillation(logits: Tensor, answers: Tensor, temperature: float) -> Tensor:
    """``T² KL(softmax(answers / T) ‖ softmax(logits / T))``, the mean over all but the last axis.

    Raises:
        ValueError: the teacher's ``answers`` have another shape than ``logits``.
    """
    if logits.shape != answers.shape:
        raise ValueError(f"teacher must answer like the model, {tuple(logits.shape)}, got {tuple(answers.shape)}")
    ours, theirs = ((x / temperature).flatten(0, -2).log_softmax(-1) for x in (logits, answers))
    return temperature**2 * F.kl_div(ours, theirs, reduction="batchmean", log_target=True)
