"""Parameters that several modules share stay shared when torch replaces them by new objects.

``deepcopy``, ``pickle``, ``.to()`` and ``load_state_dict()`` keep a shared parameter in one piece by
themselves. Moves from and to the meta device and ``load_state_dict(assign=True)`` do not: they put a new
parameter into each module that holds it. The first module to be served then notes the replacement on the old
parameter, and every other one adopts it.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from weit.nn.loading import LoadsWhole


class KeepsShared(LoadsWhole):
    """Base of modules whose own parameters may also live in other modules of this kind."""

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        before = dict(self._parameters)
        super()._apply(partial(_without_format, fn), recurse)
        self._adopt(before, copy=False)
        return self

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        before = dict(self._parameters)
        super()._load_from_state_dict(*args, **kwargs)
        self._adopt(before, copy=True)

    def _adopt(self, before: dict[str, nn.Parameter | None], *, copy: bool) -> None:
        for name, old in before.items():
            new = self._parameters[name]
            if old is None or new is None or new is old:
                continue
            adopted = _earlier_replacement(old, new)
            if adopted is None:
                old._replaced_by = new  # type: ignore[attr-defined]
                continue
            if copy and adopted is not new:  # what is loaded last counts, as without assign=True
                with torch.no_grad():
                    adopted.copy_(new)
            self._parameters[name] = adopted


def _without_format(fn: Callable[[Tensor], Tensor], tensor: Tensor) -> Tensor:
    """``fn(tensor)``, in the order that the tensor has.

    ``.to(memory_format=…)`` orders whatever has four or five axes as if they were those of maps; templates of
    convolutions have as many, and no such axes.
    """
    if tensor.dim() < 4 or type(tensor) not in (Tensor, nn.Parameter):
        return fn(tensor)
    return fn(tensor.flatten()).view(tensor.shape)


def _earlier_replacement(old: nn.Parameter, new: nn.Parameter) -> nn.Parameter | None:
    """The newest parameter that replaced ``old``, directly or through others, and is what ``new`` is to be."""
    chain = [old]
    while (newer := getattr(chain[-1], "_replaced_by", None)) is not None and all(newer is not p for p in chain):
        chain.append(newer)
    return next((p for p in reversed(chain[1:]) if _alike(p, new)), None)


def _alike(a: Tensor, b: Tensor) -> bool:
    return (a.shape, a.dtype, a.device) == (b.shape, b.dtype, b.device)
