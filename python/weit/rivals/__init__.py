"""Other ways to start a model, one file each, all with the same call: ``initialize_like(target, source, seed=...)``."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from weit.rivals import bert2bert, distillation, ligo, mimetic, scratch, tleg, weight_selection

RIVALS: dict[str, Callable[..., nn.Module]] = {
    "scratch": scratch.initialize_like,
    "weight_selection": weight_selection.initialize_like,
    "ligo": ligo.initialize_like,
    "bert2bert": bert2bert.initialize_like,
    "mimetic": mimetic.initialize_like,
    "tleg": tleg.initialize_like,
    "distillation": distillation.initialize_like,
}
