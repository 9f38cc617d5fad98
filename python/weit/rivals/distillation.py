"""Distillation alone: a fresh model is trained for some steps with the soft answers of a trained one."""

from __future__ import annotations

import copy
from typing import Any

import torch.nn.functional as F
from torch import nn

from weit.engine.data import Data
from weit.engine.objective import Loss
from weit.engine.soft_targets import SoftTargets
from weit.rivals.layers import require_source
from weit.rivals.learning import learn


def initialize_like(
    target: nn.Module,
    source: nn.Module | None,
    *,
    seed: int = 0,
    data: Data | None = None,
    steps: int = 100,
    lr: float = 1e-3,
    batch_size: int = 64,
    alpha: float = 1.0,
    temperature: float = 2.0,
    loss: Loss = F.cross_entropy,
    distance: Loss | None = None,
    **settings: Any,
) -> nn.Module:
    """Train ``target``, as its constructor drew it, on the loss and on ``source``'s answers, in place, and return it.

    Args:
        target, source: any two models with the same inputs and outputs; ``source`` stays as it is.
        data: what to train on; needed unless ``steps`` is 0.
        steps, lr, batch_size, seed, **settings: fields of ``weit.engine.TrainConfig``, and ``progress``.
        alpha: weight of ``T² KL(softmax(source / T) ‖ softmax(target / T))`` beside the loss.
        temperature: ``T``.
        distance: in place of ``T² KL``, where outputs are not logits: (outputs, answers) → scalar.

    Raises:
        ValueError: ``source`` or ``data`` is missing, or the two answer in different shapes; ``target`` is unchanged then.

    Source: Hinton et al. 2015, "Distilling the knowledge in a neural network" (arXiv 1503.02531).
    """
    teacher = require_source(source)
    if data is None and steps:
        raise ValueError("data must be given to distil on, got None")
    student = copy.deepcopy(target)
    objective = SoftTargets(teacher, loss, alpha, temperature, distance)
    learn(student, data, steps, loss=loss, objective=objective, lr=lr, batch_size=batch_size, seed=seed, **settings)
    target.load_state_dict(student.state_dict())
    return target
