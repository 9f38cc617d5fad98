"""A state dict that a module refuses leaves it as it was; torch alone would have copied whatever fits by then."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn


class LoadsWhole(nn.Module):
    """Base of modules whose ``load_state_dict`` changes all that it is asked to change, or nothing."""

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        if isinstance(state_dict, Mapping):
            # A rehearsal: what fits is the module's own numbers, so that torch says what does not before it copies any.
            own = self.state_dict()
            super().load_state_dict({k: own[k] if _fits(v, own.get(k)) else v for k, v in state_dict.items()}, strict)
        return super().load_state_dict(state_dict, strict, assign)


def _fits(given: object, own: Tensor | None) -> bool:
    return isinstance(given, Tensor) and own is not None and given.shape == own.shape
