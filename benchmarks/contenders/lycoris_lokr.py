"""LyCORIS LoKr: adapters of one term ``kron(w1, w2)``, applied without building it or built; here one call a term."""

from __future__ import annotations

import importlib
from functools import reduce
from operator import add

import torch.nn.functional as F
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


class LycorisLoKrWeight(LinearPeer):
    """The sum of all terms' ``diff_weight``, then one dense product, as for the other LoKr."""

    def __init__(self, operands: Operands) -> None:
        super().__init__(operands)
        self._weight_of = importlib.import_module(MODULE).diff_weight

    def product(self, x: Tensor, left: Tensor, right: Tensor, bias: Tensor) -> Tensor:
        unused = None
        weights = (
            self._weight_of(w1, unused, unused, w2, unused, unused, unused) for w1, w2 in zip(left, right, strict=True)
        )
        return F.linear(x, reduce(add, weights), bias)


CONTENDERS = (
    Contender(
        "lycoris_lokr",
        LycorisLoKr,
        "LyCORIS LoKr's `bypass_forward_diff` for every term, added up",
        package="lycoris-lora",
        module=MODULE,
        supports=linear_only,
    ),
    Contender(
        "lycoris_lokr_weight",
        LycorisLoKrWeight,
        "LyCORIS LoKr's `diff_weight` for every term, added up, then `F.linear`",
        package="lycoris-lora",
        module=MODULE,
        supports=linear_only,
    ),
)
