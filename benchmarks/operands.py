"""The tensors of one suite shape, the float64 result that every contender must reproduce, and one step of it."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.suite import SuiteShape
from weit_kernels import reference

# A contender may be as wrong as so many dense layers: it adds up in another order, and its gradients of factors, which
# the dense layer has none of, sum over everything.
SLACK = 10.0
LEAST_ERROR = 3e-6  # of float32 sums of some hundred thousand terms in any order, as gradients of scalers are


class WrongResult(RuntimeError):
    """A contender computes something else than the reference."""


class Operands:
    """Tensors of one suite shape, shared by all contenders, and the reference results in float64.

    ``x``, ``T``, ``S`` and ``b`` are scaled so that the output is about 1.

    Attributes:
        x, dy: input, and the gradient of the output that a training step starts from.
        T, S, b: templates ``(N, p, q, *kernel)``, scalers ``(N, m, n)``, bias ``(out,)``.
        left, right: ``S`` and ``T`` in the order in which the layout writes them: ``W = Σ_t kron(left_t, right_t)``.
        channels_last: the memory format of a convolution's maps.
        dense, dense_error: the dense layer's step and its error by phase, kept here by who makes them: they go with it.
    """

    def __init__(
        self,
        suite: SuiteShape,
        device: str = "cpu",
        dtype: torch.dtype = torch.float32,
        layout: str = "block",
        channels_last: bool = False,
    ) -> None:
        torch.manual_seed(0)
        s, self.suite, self.dtype, self.layout, self.channels_last = suite.shape, suite, dtype, layout, channels_last

        def randn(*size: int, std: float = 1.0) -> Tensor:
            return (torch.randn(size, device=device) * std).to(dtype)

        maps = suite.size if suite.batch else ()
        rows = suite.batch or suite.rows
        self.x = randn(rows, s.in_features, *maps)
        self.dy = randn(rows, s.out_features, *maps, std=suite.rows**-0.5)  # sums over rows must not overflow float16
        if channels_last:
            self.x, self.dy = (t.contiguous(memory_format=torch.channels_last) for t in (self.x, self.dy))
        self.T = randn(s.N, s.p, s.q, *s.kernel)
        self.S = randn(s.N, s.m, s.n, std=1 / math.sqrt(s.N * s.in_features * s.taps))
        self.b = randn(s.out_features)
        self.left, self.right = (self.S, self.T) if layout == "block" else (self.T, self.S)
        self.dense: dict[str, Callable[[], dict[str, Tensor]]] = {}
        self.dense_error: dict[str, float] = {}

    @property
    def padding(self) -> int:
        """That keeps a convolution's image size; all kernels of the suite are odd squares."""
        return self.suite.shape.kernel[0] // 2 if self.suite.batch else 0

    @cached_property
    def weight(self) -> Tensor:
        """The dense weight, computed in float64 and rounded once."""
        return reference.kron_weight(self.T.double(), self.S.double(), layout=self.layout).to(self.dtype)

    @cached_property
    def output(self) -> dict[str, Tensor]:
        """The result in float64."""
        return self._reference(train=False)

    @cached_property
    def gradients(self) -> dict[str, Tensor]:
        """The result and all gradients in float64."""
        return self._reference(train=True)

    def expected(self, outputs: dict[str, Tensor]) -> dict[str, Tensor]:
        """What a step that returned ``outputs`` should have returned, in float64."""
        return self.gradients if len(outputs) > 1 else self.output

    def _reference(self, train: bool) -> dict[str, Tensor]:
        leaves = {"x": self.x, "templates": self.T, "scalers": self.S, "bias": self.b}
        leaves = {name: tensor.double().requires_grad_(train) for name, tensor in leaves.items()}
        settings: dict[str, Any] = {"layout": self.layout}
        if self.suite.batch:
            y = reference.kron_conv(*leaves.values(), padding=self.padding, **settings)
        else:
            y = reference.kron_linear(*leaves.values(), **settings)
        if not train:
            return {"output": y}
        grads = torch.autograd.grad(y, [*leaves.values()], self.dy.double())
        return {"output": y.detach(), **dict(zip(leaves, grads, strict=True))}


_kept: dict[tuple[SuiteShape, str, torch.dtype, str], Operands] = {}


def operands(suite: SuiteShape, device: str, dtype: torch.dtype, layout: str = "block") -> Operands:
    """The operands of a shape, kept for the next caller: neighbouring benchmarks are of the same shape."""
    key = suite, device, dtype, layout
    if key not in _kept:
        while _kept:  # before the next ones are made, as two large ones might not fit
            _kept.popitem()[1].dense.clear()  # these steps hold the operands that they are kept with
        _kept[key] = Operands(suite, device, dtype, layout)
    return _kept[key]


def make_step(module: nn.Module, given: Operands, phase: str) -> Callable[[], dict[str, Tensor]]:
    """One call: the output alone without gradients, or the output and the gradients of ``x`` and all parameters."""
    if phase == "forward":

        def forward() -> dict[str, Tensor]:
            with torch.no_grad():
                return {"output": module(given.x)}

        return forward

    x = given.x.detach().requires_grad_()
    leaves = {"x": x, **{name.removeprefix("_orig_mod."): p for name, p in module.named_parameters()}}

    def step() -> dict[str, Tensor]:
        y = module(x)
        grads = torch.autograd.grad(y, [*leaves.values()], given.dy)
        return {"output": y.detach(), **dict(zip(leaves, grads, strict=True))}

    return step


def errors(outputs: dict[str, Tensor], given: Operands) -> dict[str, float]:
    """Relative error in norm of every tensor that the reference has too (the dense layer's weight is none)."""
    expected = given.expected(outputs)
    found = {}
    for name, got in outputs.items():
        if name not in expected:
            continue
        if got.shape != expected[name].shape:
            raise WrongResult(f"{name} has shape {tuple(got.shape)}, expected {tuple(expected[name].shape)}")
        found[name] = float((got.double() - expected[name]).norm() / expected[name].norm())
    return found


def check(outputs: dict[str, Tensor], given: Operands, dense_error: float) -> float:
    """The largest error of all tensors; raises ``WrongResult`` where it exceeds what rounding explains.

    ``dense_error`` is the dense layer's own.
    """
    bound = SLACK * max(dense_error, LEAST_ERROR)
    found = errors(outputs, given)
    for name, error in found.items():
        if not error <= bound:  # NaN too
            raise WrongResult(f"relative error {error:.1e} in {name}, more than {bound:.1e}")
    return max(found.values())
