"""A dense model of any depth and width from a pre-trained template bank."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Sequence
from typing import Any, TypeVar

import torch.nn.functional as F
from torch import nn

from weit.bank import TemplateBank
from weit.convert import kronify, materialize
from weit.engine.data import Data
from weit.engine.objective import Loss
from weit.engine.seeds import own_randomness
from weit.fitting import FIT_RATES, configs_at, fit_scalers
from weit.matching import applicable, find_layers
from weit.rules import Rules
from weit.scalers import lay_out
from weit_kernels.shapes import as_int

Model = TypeVar("Model", bound=nn.Module)


def initialize(
    model: Model,
    bank: TemplateBank,
    data: Data | None = None,
    steps: int = 150,
    *,
    lr: float | Sequence[float] = FIT_RATES,
    batch_size: int = 64,
    seed: int = 0,
    depth: str = "prefix",
    rules: Rules | None = None,
    loss: Loss = F.cross_entropy,
    progress: bool = False,
    **settings: Any,
) -> Model:
    """Give a dense model its starting weights: templates from ``bank``, scalers laid out and fitted on a little data.

    ``kronify`` with the frozen bank → ``lay_out``, if the bank has a source (else scalers are fresh, with a warning) →
    ``fit_scalers`` → ``materialize``. The same for the same arguments and number of threads. What the source does not
    have, or has of another size that is no width (position embeddings of other images, a head for other classes), keeps the
    numbers that it came with.

    Args:
        model: any depth and width of the family that the bank was pre-trained for, with attention heads of the same size;
            filled in place, still dense.
        bank: stays as it is; its device and dtype need not be the model's.
        data: what the scalers are fitted on; ``None`` for the first guess alone.
        steps: of fitting; 0 for the first guess alone.
        lr: a learning rate of fitting, or several: the one whose model has the lowest loss on held-out items is taken.
        batch_size, seed, loss, progress, **settings: as for ``fit_scalers``.
        depth: how layers correspond in a shallower model; see ``map_depth``.
        rules: as for ``kronify``, but those that match no layer of ``model`` are left out: it may be shallower.

    Returns:
        ``model``, ready to train.

    Raises:
        TypeError, ValueError, FloatingPointError: as ``kronify``, ``lay_out`` and ``fit_scalers``; ``model`` is unchanged.
    """
    if not isinstance(bank, TemplateBank):
        raise TypeError(f"bank must be a TemplateBank, got {type(bank).__name__}")
    for name, value in (("steps", steps), ("seed", seed)):
        number = as_int(value)
        if number is None or number < 0:
            raise ValueError(f"{name} must be an int from 0, got {value!r}")
    fit: dict[str, Any] = {"lr": lr, "batch_size": batch_size, "seed": seed, **settings}
    configs_at(steps=max(1, steps), **{name: fit[name] for name in fit.keys() - {"run_dir", "resume"}})
    target = copy.deepcopy(model)
    rules = None if rules is None else applicable(rules, target)
    weight = find_layers(target, rules)[0].layer.weight
    if weight.is_meta:
        raise ValueError("model must hold numbers to be filled, but it is on the meta device")
    # Without the source, which is laid out below, and where the model is: banks are read onto the CPU.
    own = TemplateBank({role: bank[role].detach().to(weight, copy=True) for role in bank}, bank.layout)
    with own_randomness(seed):
        kronify(target, own, rules=rules)
    if bank.source is not None:
        lay_out(target, bank.source, depth=depth, seed=seed)
    else:
        warnings.warn("bank has no source, so scalers start fresh; see TemplateBank.take_source", stacklevel=2)
    if data is not None and steps:
        fit_scalers(target, own, data, steps, loss=loss, progress=progress, **fit)
    materialize(target)
    if data is not None and steps and not all(parameter.isfinite().all() for parameter in target.parameters()):
        # Their factors are finite, or fitting had said so.
        raise FloatingPointError("weights became NaN or infinite in fitting; a smaller lr may help")
    model.load_state_dict(target.state_dict())
    return model
