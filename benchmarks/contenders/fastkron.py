"""FastKron (Jangda and Yadav 2024): products with one Kronecker product of factors, here one call a term."""

from __future__ import annotations

import importlib
from functools import reduce
from operator import add

import torch
from torch import Tensor

from benchmarks.contenders.base import Contender, LinearPeer, linear_only
from benchmarks.operands import Operands
from benchmarks.suite import SuiteShape

MODULE = "pyfastkron.fastkrontorch"


class FastKron(LinearPeer):
    """``Σ_t x (left_tᵀ ⊗ right_tᵀ)``."""

    def __init__(self, operands: Operands) -> None:
        super().__init__(operands)
        self._gemkm = importlib.import_module(MODULE).gemkm
        # In its own layout of the factors: it takes longer with views of ours.
        self._factors = [tuple(f.detach().mT.contiguous() for f in pair) for pair in zip(*self.factors(), strict=True)]

    def product(self, x: Tensor, left: Tensor, right: Tensor, bias: Tensor) -> Tensor:
        if torch.is_grad_enabled():
            pairs = ([a.mT.contiguous(), b.mT.contiguous()] for a, b in zip(left, right, strict=True))
            return reduce(add, (self._gemkm(x, pair) for pair in pairs)) + bias
        total, scale = None, 0.0
        # Detached, as it looks at requires_grad and then drops the sum that it is to add to.
        for a, b in self._factors:
            total, scale = self._gemkm(x, [a, b], 1.0, scale, total), 1.0
        return total + bias


def _supports(suite: SuiteShape, phase: str, dtype: torch.dtype, device: str) -> str:
    if dtype != torch.float32:
        return f"its kernels take float32 and float64, not {dtype}"
    return linear_only(suite, phase, dtype, device)


CONTENDERS = (
    Contender(
        "fastkron",
        FastKron,
        "`pyfastkron.gemkm` for every term, which adds to the sum itself in the forward phase",
        package="pyfastkron",
        module=MODULE,
        supports=_supports,
    ),
)
