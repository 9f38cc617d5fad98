"""Training and evaluation mode, module by module: a batch norm may be frozen while the rest of its model learns."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


def has_batch_norm(model: nn.Module) -> bool:
    """Whether ``model`` has a batch norm, or other modules that keep statistics of what they see in training."""
    kind = nn.modules.batchnorm._BatchNorm
    return any(isinstance(module, kind) or getattr(module, "track_running_stats", False) for module in model.modules())


@contextmanager
def kept_modes(model: nn.Module) -> Iterator[None]:
    """Whatever modes the block puts ``model``'s modules into, they are as before when it ends."""
    modes = [(module, module.training) for module in model.modules()]
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
