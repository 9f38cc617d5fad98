"""PHM layers (Zhang et al. 2021, "Beyond Fully-Connected Layers with Quaternions"), from the paper's formula."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.contenders.base import Contender, LinearPeer, linear_only


class PHM(LinearPeer):
    """``H = Σ_i A_i ⊗ S_i`` term by term, then ``y = H x + b``."""

    def product(self, x: Tensor, left: Tensor, right: Tensor, bias: Tensor) -> Tensor:
        weight = torch.kron(left[0], right[0])
        for a, s in zip(left[1:], right[1:], strict=True):
            weight = weight + torch.kron(a, s)
        return F.linear(x, weight, bias)


CONTENDERS = (
    Contender("phm", PHM, "the PHM paper's formula: `torch.kron` of every term, added up, then `F.linear`",
              supports=linear_only),
)  # fmt: skip
