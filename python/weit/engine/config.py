"""How to train: the settings of a run, checked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from math import cos, inf, pi
from numbers import Real
from typing import Any, TypeVar

from weit_kernels.shapes import as_int

Config = TypeVar("Config", bound="TrainConfig")
PRECISIONS = ("no", "bf16", "fp16")
SHARDINGS = ("none", "fsdp")
HOW = ("accumulate", "sharding", "activation_checkpointing", "workers")
"""Settings that change how a run is computed, and its numbers by no more than rounding: a resumed run may have others."""
HOW_WITH_BATCH_NORM = ("sharding", "workers")
"""Those of a model with a batch norm, which sees each part of a batch for itself, and again where blocks are recomputed."""


@dataclass(frozen=True)
class TrainConfig:
    """How to train: what decides the result, then how it is computed, then what a run leaves behind.

    Args:
        steps: optimiser steps.
        batch_size: items in a step, over all processes.
        lr: peak learning rate of AdamW; reached after ``warmup`` and led to zero along a cosine.
        warmup: share of the steps over which the learning rate rises linearly.
        weight_decay: of parameters with two or more dimensions; biases and norms have none.
        betas: of AdamW.
        clip_norm: largest norm of the gradient; ``None`` for no clipping.
        seed: order of the data and randomness inside model and data set.
        accumulate: parts a batch is cut into, to need less memory; the result is the same to rounding, unless the model has
            a batch norm, which sees each part for itself, or draws numbers, as dropout does.
        mixed_precision: ``"no"``, ``"bf16"`` or ``"fp16"``.
        sharding: ``"none"``: each process holds everything; ``"fsdp"``: parameters, gradients and optimiser state are
            spread over the processes (FSDP2), and so are the files of a checkpoint.
        activation_checkpointing: keep only the inputs of the model's blocks for the backward pass, which computes the rest
            again: less memory, for the time of one more forward pass.
        workers: processes that fetch items ahead, beside each training process; 0: as a given data loader says, else none.
        log_every: steps between records; a record's loss is the mean since the one before.
        evaluate_every: steps between evaluations; 0 for one at the end.
        checkpoint_every: steps between checkpoints, where there is a run folder; 0 for one at the end.
        keep_checkpoints: how many of them stay.

    Raises:
        ValueError: a field out of its range.
    """

    steps: int = 400
    batch_size: int = 64
    lr: float = 1e-3
    warmup: float = 0.1
    weight_decay: float = 0.05
    betas: tuple[float, float] = (0.9, 0.999)
    clip_norm: float | None = 1.0
    seed: int = 0
    accumulate: int = 1
    mixed_precision: str = "no"
    sharding: str = "none"
    activation_checkpointing: bool = False
    workers: int = 0
    log_every: int = 10
    evaluate_every: int = 0
    checkpoint_every: int = 200
    keep_checkpoints: int = 2

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "accumulate", "log_every", "keep_checkpoints"):
            take_whole(self, name, 1)
        for name in ("evaluate_every", "checkpoint_every", "seed", "workers"):
            take_whole(self, name, 0)
        for name in ("lr", "clip_norm", "weight_decay", "warmup"):
            if is_number(getattr(self, name)):  # NumPy's too, which JSON would not take
                object.__setattr__(self, name, float(getattr(self, name)))
        require(self, "lr", is_number(self.lr) and 0 < self.lr < inf, "a positive number")
        clip = self.clip_norm
        require(self, "clip_norm", clip is None or (is_number(clip) and 0 < clip < inf), "a positive number or None")
        require(self, "weight_decay", is_number(self.weight_decay) and 0 <= self.weight_decay < inf, "a number from 0")
        require(self, "warmup", is_number(self.warmup) and 0 <= self.warmup <= 1, "a share from 0 to 1")
        pair = isinstance(self.betas, tuple | list) and len(self.betas) == 2
        require(self, "betas", pair and all(is_number(b) and 0 <= b < 1 for b in self.betas), "two numbers in [0, 1)")
        object.__setattr__(self, "betas", tuple(map(float, self.betas)))
        require(self, "mixed_precision", self.mixed_precision in PRECISIONS, '"no", "bf16" or "fp16"')
        require(self, "sharding", self.sharding in SHARDINGS, " or ".join(f'"{name}"' for name in SHARDINGS))
        sharded = self.sharding != "none"
        require(
            self, "mixed_precision", not (sharded and self.mixed_precision == "fp16"), '"no" or "bf16" with sharding'
        )
        divides = self.batch_size % self.accumulate == 0
        require(self, "accumulate", divides, f"a divisor of batch_size={self.batch_size}")

    @classmethod
    def of(cls: type[Config], config: Config | Mapping[str, Any] | None) -> Config:
        """``config`` itself, one made from a mapping with the same fields, or the default for ``None``.

        Raises:
            TypeError: it is none of these. ValueError: fields that are not there, or out of range.
        """
        if isinstance(config, cls):
            return config
        if not isinstance(config, Mapping | None):
            raise TypeError(
                f"config must be a {cls.__name__} or a mapping with its fields, got {type(config).__name__}"
            )
        given = dict(config or {})
        unknown = sorted(map(repr, given.keys() - {field.name for field in fields(cls)}))
        if unknown:
            raise ValueError(f"config has the fields of {cls.__name__}, but not {', '.join(unknown)}")
        return cls(**given)

    def items_at_a_time(self, processes: int) -> int:
        """Items of a batch that each of so many processes has in memory at once.

        Raises:
            ValueError: a batch cannot be cut evenly.
        """
        parts = processes * self.accumulate
        if self.batch_size % parts:
            raise ValueError(
                f"batch_size must be a multiple of processes × accumulate = {parts}, got {self.batch_size}"
            )
        return self.batch_size // parts

    def lr_at(self, step: int) -> float:
        """Learning rate of step 0, 1, …, ``steps - 1``."""
        warm = self.warmup * self.steps
        rise = min(1.0, (step + 1) / (warm + 1))
        return self.lr * rise * 0.5 * (1 + cos(pi * max(0.0, step + 1 - warm) / (self.steps + 1 - warm)))


def take_whole(config: object, name: str, least: int) -> None:
    """Keep the field ``name`` as an int, where it stands for one; raise ``ValueError`` unless it is one from ``least``."""
    number = as_int(getattr(config, name))
    require(config, name, number is not None and number >= least, "a positive int" if least else "an int from 0")
    object.__setattr__(config, name, number)


def is_number(value: object) -> bool:
    """Whether ``value`` is a real number, and no truth value."""
    return isinstance(value, Real) and not isinstance(value, bool)


def require(config: object, name: str, holds: bool, expected: str) -> None:
    """Raise ``ValueError`` unless the condition on the field ``name`` holds."""
    if not holds:
        raise ValueError(f"{name} must be {expected}, got {getattr(config, name)!r}")
