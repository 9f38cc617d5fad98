"""linear_operator (the library under GPyTorch): lazy Kronecker products, summed."""

from __future__ import annotations

import importlib

from torch import Tensor

from benchmarks.contenders.base import Contender, LinearPeer, linear_only
from benchmarks.operands import Operands

MODULE = "linear_operator.operators"


class LazyKronecker(LinearPeer):
    """``(Σ_t KroneckerProductLinearOperator(left_t, right_t)) xᵀ``, transposed back."""

    def __init__(self, operands: Operands) -> None:
        super().__init__(operands)
        operators = importlib.import_module(MODULE)
        self._kron, self._sum = operators.KroneckerProductLinearOperator, operators.SumLinearOperator

    def product(self, x: Tensor, left: Tensor, right: Tensor, bias: Tensor) -> Tensor:
        terms = [self._kron(a, b) for a, b in zip(left, right, strict=True)]
        return self._sum(*terms).matmul(x.mT).mT + bias


CONTENDERS = (
    Contender(
        "linear_operator",
        LazyKronecker,
        "`KroneckerProductLinearOperator` of every term in a `SumLinearOperator`",
        package="linear_operator",
        module=MODULE,
        supports=linear_only,
    ),
)
