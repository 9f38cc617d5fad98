"""TensorLy-Torch: a block tensor train of two cores and rank N is this sum of Kronecker products."""

from __future__ import annotations

import importlib
from functools import partial

from torch import Tensor

from benchmarks.contenders.base import Contender, LinearPeer, linear_only
from benchmarks.operands import Operands

MODULE = "tltorch"


class TensorTrain(LinearPeer):
    """``FactorizedLinear`` with cores ``left (1, m, n, N)`` and ``right (N, p, q, 1)``."""

    def __init__(self, operands: Operands, implementation: str) -> None:
        super().__init__(operands)
        tltorch = importlib.import_module(MODULE)
        (N, m, n), (_, p, q) = operands.left.shape, operands.right.shape
        layer = tltorch.FactorizedLinear(
            (n, q), (m, p), bias=False, factorization="blocktt", rank=(1, N, 1), implementation=implementation,
            device=operands.x.device, dtype=operands.dtype,
        )  # fmt: skip
        self._layer = (layer,)  # in a tuple: its tensors are this module's parameters or views of them

    def product(self, x: Tensor, left: Tensor, right: Tensor, bias: Tensor) -> Tensor:
        (layer,) = self._layer
        for i, core in enumerate((left.permute(1, 2, 0)[None], right[..., None])):
            layer.weight.factors._parameters[f"factor_{i}"] = core
        layer.bias = bias
        return layer(x)


CONTENDERS = tuple(
    Contender(
        f"tensorly_{implementation}",
        partial(TensorTrain, implementation=implementation),
        f'`tltorch.FactorizedLinear`, block tensor train, implementation="{implementation}"',
        package="tensorly-torch or the tensorly that it needs",
        module=MODULE,
        supports=linear_only,
    )
    for implementation in ("factorized", "reconstructed")
)
