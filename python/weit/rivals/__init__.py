"""Other ways to start a model, one file each, all with the same call: ``initialize_like(target, source, seed=...)``."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from weit.rivals import scratch, weight_selection

RIVALS: dict[str, Callable[..., nn.Module]] = {
    "scratch": scratch.initialize_like,
    "weight_selection": weight_selection.initialize_like,
}
