"""opt_einsum: the whole sum as one expression of three tensors, contracted in the order that it finds best."""

from __future__ import annotations

import importlib

from torch import Tensor

from benchmarks.contenders.base import Contender, LinearPeer, linear_only
from benchmarks.operands import Operands

MODULE = "opt_einsum"


class OptEinsum(LinearPeer):
    """``y[b,i,a] = Σ x[b,j,k] left[t,i,j] right[t,a,k]``, the order found once for the shapes."""

    def __init__(self, operands: Operands) -> None:
        super().__init__(operands)
        left, right = operands.left, operands.right
        self._columns = left.shape[2], right.shape[2]
        shapes = (operands.suite.rows, *self._columns), left.shape, right.shape
        self._contract = importlib.import_module(MODULE).contract_expression("bjk,tij,tak->bia", *shapes)

    def product(self, x: Tensor, left: Tensor, right: Tensor, bias: Tensor) -> Tensor:
        return self._contract(x.view(-1, *self._columns), left, right).flatten(1) + bias


CONTENDERS = (
    Contender(
        "opt_einsum",
        OptEinsum,
        "`opt_einsum.contract_expression` of the whole sum",
        package="opt_einsum",
        module=MODULE,
        supports=linear_only,
    ),
)
