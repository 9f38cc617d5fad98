"""torch's own layers: with the finished dense weight, and with the weight made anew in every call."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import weit_kernels
from benchmarks.contenders.base import Contender, LinearPeer
from benchmarks.operands import Operands
from benchmarks.suite import SuiteShape


class Materialised(LinearPeer):
    """The dense weight from templates and scalers in every call, then the library's layer."""

    def __init__(self, operands: Operands) -> None:
        super().__init__(operands)
        self.layout, self.padding, self.conv = operands.layout, operands.padding, operands.suite.batch > 0

    def forward(self, x: Tensor) -> Tensor:
        weight = weit_kernels.kron_weight(self.templates, self.scalers, layout=self.layout)
        if self.conv:
            return F.conv2d(x, weight, self.bias, padding=self.padding)
        return F.linear(x, weight, self.bias)


def dense_layer(operands: Operands) -> nn.Module:
    """``nn.Linear`` or ``nn.Conv2d`` with the dense weight."""
    s, kind = operands.suite.shape, {"device": operands.x.device, "dtype": operands.dtype}
    layer: nn.Module
    if operands.suite.batch:
        layer = nn.Conv2d(s.in_features, s.out_features, s.kernel, padding=operands.padding, **kind)
    else:
        layer = nn.Linear(s.in_features, s.out_features, **kind)
    layer.load_state_dict({"weight": operands.weight, "bias": operands.b})
    return layer.to(memory_format=torch.channels_last) if operands.channels_last else layer


def _compiled(operands: Operands) -> nn.Module:
    torch._dynamo.reset()  # else torch.compile gives up on a module's code after eight shapes
    return torch.compile(Materialised(operands), dynamic=False)


def _compiles(suite: SuiteShape, phase: str, dtype: torch.dtype, device: str) -> str:
    if device == "cpu" and suite.name not in COMPILED_ON_CPU:
        return f"every shape is compiled anew, so on a CPU only {', '.join(COMPILED_ON_CPU)} are"
    return ""


COMPILED_ON_CPU = ("deit_b_fc1", "resnet50_l3_3x3")

DENSE = Contender("dense", dense_layer, "`nn.Linear` or `nn.Conv2d` with the finished weight")
CONTENDERS = (
    Contender("materialised", Materialised, "the dense weight made anew in every call, then `F.linear` or `F.conv2d`"),
    Contender("materialised_compiled", _compiled, "the same under `torch.compile`", supports=_compiles),
)
