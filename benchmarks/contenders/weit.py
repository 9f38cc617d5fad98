"""The operator of this package: what it chooses by itself, and every path on every backend."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

import weit_kernels
from benchmarks.contenders.base import Contender, LinearPeer
from benchmarks.operands import Operands
from benchmarks.suite import SuiteShape
from weit_kernels import backends

AUTO = "auto"


class Kron(LinearPeer):
    """``kron_linear`` or ``kron_conv2d`` as a module, so that its calls cost what ``nn.Linear``'s do."""

    def __init__(self, operands: Operands, path: str = "auto", backend: str = "auto") -> None:
        super().__init__(operands)
        self.choice: dict[str, Any] = {"layout": operands.layout, "path": path, "backend": backend}
        self.padding, self.conv = operands.padding, operands.suite.batch > 0

    def forward(self, x: Tensor) -> Tensor:
        if self.conv:
            call = partial(weit_kernels.kron_conv2d, padding=self.padding)
            return call(x, self.templates, self.scalers, self.bias, **self.choice)
        return weit_kernels.kron_linear(x, self.templates, self.scalers, self.bias, **self.choice)


def _forced(path: str, backend: str) -> Contender:
    def supports(suite: SuiteShape, phase: str, dtype: torch.dtype, device: str) -> str:
        reason = backends.why_not(path, backend, torch.device(device), dtype, backends.Form.of(suite.shape.kernel))
        if not reason and (backend, device) == ("triton", "cpu"):
            return "Triton's interpreter is for tests: its times mean nothing"
        return reason

    build = partial(Kron, path=path, backend=backend)
    return Contender(f"{path}_{backend}", build, f"path {path} on backend {backend}", supports=supports)


CONTENDERS = (
    Contender(AUTO, Kron, "what `weit_kernels` chooses by itself"),
    *(_forced(path, backend) for path, backend in backends.pairs()),
)
