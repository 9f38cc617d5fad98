"""Scaler fitting: a kronified model learns all but its templates, at the best of a few learning rates."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from contextlib import suppress
from math import inf
from pathlib import Path
from typing import Any

import torch.nn.functional as F
from torch import nn

from weit.bank import TemplateBank
from weit.engine.config import TrainConfig
from weit.engine.data import Data
from weit.engine.freezing import frozen
from weit.engine.held_out import HELD_OUT_LOSS, HeldOut
from weit.engine.loop import train
from weit.engine.objective import Loss
from weit.engine.run_folder import SETTINGS, Record, refuse_another_run
from weit.nn.factors import KronFactors

FIT_RATES = (1e-3, 1e-2)
"""What is tried by default: after a short pre-training the higher is mostly better, after a long one the lower."""


def fit_scalers(
    model: nn.Module,
    bank: TemplateBank,
    data: Data,
    steps: int = 150,
    *,
    lr: float | Sequence[float] = FIT_RATES,
    batch_size: int = 64,
    seed: int = 0,
    loss: Loss = F.cross_entropy,
    progress: bool = False,
    run_dir: str | Path | None = None,
    resume: bool = False,
    **settings: Any,
) -> list[Record]:
    """Train what a kronified model does not share, in place: scalers, biases, norms, embeddings, heads.

    The templates are frozen; whether they learn otherwise is as before when this returns. With several rates the model is
    fitted at each, always from where it is now, and keeps what gives the lowest mean loss on items held out from ``data``:
    every tenth, drawn at random, at most 16 batches.

    Args:
        model: kronified with ``bank``.
        data, loss, progress: as for ``weit.engine.train``.
        lr: a peak learning rate, or several to choose from.
        steps, batch_size, seed, **settings: fields of ``weit.engine.TrainConfig``.
        run_dir, resume: as for ``weit.engine.train``; with several rates each has its folder in there (``lr0.001``).

    Returns:
        The records of the training that the model keeps: step, loss, lr; of several, ``held_out_loss`` too, in the last.

    Raises:
        ValueError: no layer of ``model`` has its templates from ``bank``; bad data or settings.
        TypeError: ``bank`` is none; as ``weit.engine.train``.
        FloatingPointError: the loss or, in the last step, parameters became NaN or infinite at each rate.
        FileExistsError: as ``weit.engine.train``.

    With several rates ``model`` is unchanged after an error.

    Source: Xia et al., "WeiT" (arXiv 2604.14769): the target's scalers are trained on little data, templates frozen.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be an nn.Module, got {type(model).__name__}")
    if not isinstance(bank, TemplateBank):
        raise TypeError(f"bank must be a TemplateBank, got {type(bank).__name__}")
    shared = {id(parameter) for parameter in bank.parameters()}
    if not any(isinstance(module, KronFactors) and id(module.templates) in shared for module in model.modules()):
        raise ValueError("model must be kronified with bank, but none of its layers has templates from it")
    configs = configs_at(lr, steps=steps, batch_size=batch_size, seed=seed, **settings)
    run: dict[str, Any] = {"loss": loss, "progress": progress, "resume": resume}
    with frozen(bank.parameters()):
        if len(configs) == 1:
            return train(model, data, configs[0], run_dir=run_dir, **run)
        return _train_at_the_best(model, data, configs, run_dir, **run)


def configs_at(lr: float | Sequence[float], **settings: Any) -> list[TrainConfig]:
    """How to train at each of the rates, for ``fit_scalers``.

    Raises:
        ValueError: no rate, or a field out of range.
    """
    given: Any = lr
    try:
        rates = list(given)
    except TypeError:
        rates = [given]
    configs = {config.lr: config for config in (TrainConfig.of({"lr": rate, **settings}) for rate in rates)}
    if not configs:
        raise ValueError("lr must be a positive number or several, got none")
    return list(configs.values())


def rate_folder(run_dir: str | Path, lr: float) -> Path:
    """Where ``fit_scalers`` keeps the record of one of several rates."""
    return Path(run_dir) / f"lr{lr!r}"


def _train_at_the_best(
    model: nn.Module, data: Data, configs: list[TrainConfig], run_dir: str | Path | None, *, loss: Loss, **run: Any
) -> list[Record]:
    folders = [None if run_dir is None else rate_folder(run_dir, config.lr) for config in configs]
    for folder in folders:
        if folder is not None and not run["resume"]:
            refuse_another_run(folder)
    held_out = HeldOut(data, model, loss, configs[0].batch_size, configs[0].seed)
    before = copy.deepcopy(model.state_dict())
    least, kept = inf, before
    records: list[Record] = []
    try:
        for config, folder in zip(configs, folders, strict=True):
            model.load_state_dict(before)
            # An interrupted run has not come to the last rates.
            begun = folder is None or (folder / SETTINGS).exists() or config is configs[0]
            own = {**run, "resume": run["resume"] and begun, "run_dir": folder}
            try:
                found = train(model, held_out.rest, config, loss=loss, evaluate=held_out, **own)
            except FloatingPointError:
                continue
            if found[-1][HELD_OUT_LOSS] < least:  # false for NaN
                least, kept, records = found[-1][HELD_OUT_LOSS], copy.deepcopy(model.state_dict()), found
        if not records:
            tried = ", ".join(f"{config.lr:g}" for config in configs)
            raise FloatingPointError(f"loss became infinite or NaN at each lr of {tried}; lower ones may help")
    except BaseException:
        with suppress(RuntimeError):  # after most errors in a sharded run the model holds nothing to restore
            model.load_state_dict(before)
        raise
    model.load_state_dict(kept)
    return records
