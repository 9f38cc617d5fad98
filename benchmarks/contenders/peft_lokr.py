"""PEFT's LoKr: an adapter ``ΔW = kron(w1, w2)`` of one term, here one adapter a term."""

from __future__ import annotations

import importlib
from functools import reduce
from operator import add

import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.contenders.base import Contender, LinearPeer, linear_only
from benchmarks.operands import Operands

MODULE = "peft.tuners.lokr.layer"


class PeftLoKr(LinearPeer):
    """The sum of all adapters' ``get_delta_weight``, then one dense product.

    The layer's own ``forward`` would add the product with a frozen base weight, and take a dense product for each
    adapter: this is the faster way to have the same function from it.
    """

    def __init__(self, operands: Operands) -> None:
        super().__init__(operands)
        s = operands.suite.shape
        config = importlib.import_module("peft").LoKrConfig
        base = nn.Linear(s.in_features, s.out_features, device="meta")  # only its shape is read
        # A rank this high has PEFT keep both factors whole; their own sizes are replaced below.
        rank = max(s.in_features, s.out_features)
        layer = importlib.import_module(MODULE).Linear(base, "0", config(r=rank, alpha=rank), r=rank, alpha=rank)
        for t in range(1, s.N):
            layer.update_layer(str(t), rank, rank, config(r=rank, alpha=rank))
        self._layer = (layer,)  # in a tuple: its parameters are views of this module's

    def product(self, x: Tensor, left: Tensor, right: Tensor, bias: Tensor) -> Tensor:
        (layer,) = self._layer
        for t, (w1, w2) in enumerate(zip(left, right, strict=True)):
            layer.lokr_w1._parameters[str(t)], layer.lokr_w2._parameters[str(t)] = w1, w2
        weight = reduce(add, (layer.get_delta_weight(str(t)) for t in range(len(left))))
        return F.linear(x, weight, bias)


CONTENDERS = (
    Contender(
        "peft_lokr",
        PeftLoKr,
        "PEFT LoKr's `get_delta_weight` for every term, added up, then `F.linear`",
        package="peft",
        module=MODULE,
        supports=linear_only,
    ),
)
