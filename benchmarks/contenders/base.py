"""What a contender is: a name, what it needs, what it cannot do, and how to build it."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor, nn

from benchmarks.operands import Operands
from benchmarks.suite import SuiteShape
from benchmarks.torchvision_operators import declare

Supports = Callable[[SuiteShape, str, torch.dtype, str], str]


def _anything(suite: SuiteShape, phase: str, dtype: torch.dtype, device: str) -> str:
    return ""


@dataclass(frozen=True, repr=False)
class Contender:
    """One way to compute ``y = W x + b`` with ``W = Σ_t kron(left_t, right_t)``.

    Attributes:
        name: in tables and as a test's id.
        build: operands → module; its parameters are named ``templates``, ``scalers`` and ``bias`` where it has them
            as one tensor each, and its gradients of those are checked.
        about: one sentence for the tables, on what is called how.
        package: what to install for it; empty for torch and weit.
        module: what to import to see whether it is installed.
        supports: (shape, phase, dtype, device) → why not; empty if it can.
    """

    name: str
    build: Callable[[Operands], nn.Module]
    about: str
    package: str = ""
    module: str = ""
    supports: Supports = _anything

    def __repr__(self) -> str:
        return self.name  # what pytest-benchmark writes into its file

    def why_not(self, suite: SuiteShape, phase: str, dtype: torch.dtype, device: str) -> str:
        """Why it cannot run here; empty if it can."""
        return (importable(self.module, self.package) if self.module else "") or self.supports(
            suite, phase, dtype, device
        )


@cache
def importable(module: str, package: str) -> str:
    """Why ``module`` cannot be imported; empty if it can."""
    declare()
    try:
        importlib.import_module(module)
    except Exception as error:  # a package beside the wrong version of another may raise anything
        reason = " ".join(str(error).split())
        return f"{package} cannot be imported: {type(error).__name__}: {reason}"
    return ""


def linear_only(suite: SuiteShape, phase: str, dtype: torch.dtype, device: str) -> str:
    """Most peers have no convolution with this weight."""
    return "it has no convolution with this weight" if suite.batch else ""


class LinearPeer(nn.Module):
    """Base of peers: the factors as two stacked parameters, and the bias, which each adds as cheaply as it can."""

    def __init__(self, operands: Operands) -> None:
        super().__init__()
        self.templates, self.scalers, self.bias = map(nn.Parameter, (operands.T, operands.S, operands.b))
        self._scalers_left = operands.layout == "block"

    def factors(self) -> tuple[Tensor, Tensor]:
        """``left`` and ``right`` of ``W = Σ_t kron(left_t, right_t)``."""
        return (self.scalers, self.templates) if self._scalers_left else (self.templates, self.scalers)

    def product(self, x: Tensor, left: Tensor, right: Tensor, bias: Tensor) -> Tensor:
        """``x Wᵀ + b``."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        return self.product(x, *self.factors(), self.bias)
