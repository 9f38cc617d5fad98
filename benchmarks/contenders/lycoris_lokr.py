"""LyCORIS LoKr: adapters of one term ``kron(w1, w2)``, applied without building it; here one call a term."""

from __future__ import annotations

import importlib
from functools import reduce
from operator import add

from torch import Tensor

from benchmarks.contenders.base import Contender, LinearPeer, linear_only
from benchmarks.operands import Operands

MODULE = "lycoris.functional.lokr"


class LycorisLoKr(LinearPeer):
    """``Σ_t bypass_forward_diff(x, left_t, right_t)``."""

    def __init__(self, operands: Operands) -> None:
        super().__init__(operands)
        self._apply_term = importlib.import_module(MODULE).bypass_forward_diff

    def product(self, x: Tensor, left: Tensor, right: Tensor, bias: Tensor) -> Tensor:
        unused = None
        terms = (
            self._apply_term(x, None, w1, unused, unused, w2, unused, unused, unused)
            for w1, w2 in zip(left, right, strict=True)
        )
        return reduce(add, terms) + bias


CONTENDERS = (
    Contender(
        "lycoris_lokr",
        LycorisLoKr,
        "LyCORIS LoKr's `bypass_forward_diff` for every term, added up",
        package="lycoris-lora",
        module=MODULE,
        supports=linear_only,
    ),
)
