"""What is compared, and the float64 result that each must reproduce before it is timed."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import weit_kernels
from benchmarks.contenders.dense import dense_layer
from benchmarks.operands import WrongResult
from benchmarks.operands import make_step as step_of
from benchmarks.suite import SuiteShape, load
from weit_kernels import reference
from weit_kernels.shapes import BACKENDS, PATHS

DENSE = "dense"
AUTO = "auto"
MATERIALISED, COMPILED = "materialised", "compiled"
FORCED = tuple(f"{path}/{backend}" for backend in BACKENDS[1:] for path in PATHS[1:])
# What a goal needs comes first, so that a run that is cut short has it.
STAGES = {"ours": (AUTO, MATERIALISED), "paths": FORCED, "compiled": (COMPILED,)}

# Relative error in norm, of the result and of every gradient, beyond which a contender is not timed: a few roundings of
# the 16-bit formats; for float32 what TF32 leaves, which cuDNN uses unless told otherwise.
BOUNDS = {torch.bfloat16: 2e-2, torch.float16: 4e-3, torch.float32: 4e-3}


def suite_shapes(device: str, quick: bool) -> list[SuiteShape]:
    """The linear shapes and the convolutions; ``quick`` keeps them all but makes them tiny."""
    shapes = [shape for kind in ("linear", "conv2d") for shape in load(kind, cpu=device == "cpu")]
    return [_tiny(shape) for shape in shapes] if quick else shapes


def _tiny(suite: SuiteShape) -> SuiteShape:
    s = suite.shape
    p, q = max(8, s.p // 16), max(8, s.q // 16)
    shape = replace(s, p=p, q=q, out_features=s.m * p, in_features=s.n * q)
    if suite.kind != "train":
        return replace(suite, shape=shape)
    if not suite.batch:
        return replace(suite, shape=shape, rows=128)
    return replace(suite, shape=shape, rows=2 * 7 * 7, batch=2, size=(7, 7))


class Operands:
    """Tensors of one suite shape, shared by all contenders, and the reference results in float64.

    ``x``, ``T``, ``S`` and ``b`` are scaled so that the output is about 1; ``channels_last`` is the memory format of a
    convolution's maps.
    """

    def __init__(self, suite: SuiteShape, device: str, dtype: torch.dtype, channels_last: bool = False) -> None:
        torch.manual_seed(0)
        s, self.suite, self.dtype = suite.shape, suite, dtype
        self.channels_last = channels_last
        conv = suite.batch > 0

        def randn(*size: int, std: float = 1.0) -> Tensor:
            return (torch.randn(size, device=device) * std).to(dtype)

        self.x = randn(*((suite.batch, s.in_features, *suite.size) if conv else (suite.rows, s.in_features)))
        size = (suite.batch, s.out_features, *suite.size) if conv else (suite.rows, s.out_features)
        self.dy = randn(*size, std=suite.rows**-0.5)  # sums over rows must not overflow float16
        if channels_last:
            self.x, self.dy = (t.contiguous(memory_format=torch.channels_last) for t in (self.x, self.dy))
        self.T = randn(s.N, s.p, s.q, *s.kernel)
        self.S = randn(s.N, s.m, s.n, std=1 / math.sqrt(s.N * s.in_features * s.taps))
        self.b = randn(s.out_features)

    @cached_property
    def weight(self) -> Tensor:
        """The dense weight, computed in float64 and rounded once."""
        return reference.kron_weight(self.T.double(), self.S.double()).to(self.dtype)

    @property
    def padding(self) -> int:
        """That keeps a convolution's image size; all kernels of the suite are odd squares."""
        return self.suite.shape.kernel[0] // 2 if self.suite.batch else 0

    @cached_property
    def output(self) -> Tensor:
        """The result in float64, kept in float32."""
        return self._reference(False)["output"]

    @cached_property
    def gradients(self) -> dict[str, Tensor]:
        """The result and the gradients in float64, kept in float32."""
        return self._reference(True)

    def _reference(self, train: bool) -> dict[str, Tensor]:
        names = ("x", "templates", "scalers", "bias")
        leaves = [t.double().requires_grad_(train) for t in (self.x, self.T, self.S, self.b)]
        conv = self.suite.batch > 0
        y = reference.kron_conv(*leaves, padding=self.padding) if conv else reference.kron_linear(*leaves)
        found = {"output": y.detach().float()}
        if train:
            grads = torch.autograd.grad(y, leaves, self.dy.double())
            found |= {name: grad.float() for name, grad in zip(names, grads, strict=True)}
        return found


class Kron(nn.Module):
    """The operator on a path and a backend, as a module, so that its calls cost what ``nn.Linear``'s do."""

    def __init__(self, operands: Operands, path: str, backend: str) -> None:
        super().__init__()
        self.templates, self.scalers, self.bias = map(nn.Parameter, (operands.T, operands.S, operands.b))
        self.choice = {"path": path, "backend": backend}
        self.padding, self.conv = operands.padding, operands.suite.batch > 0

    def forward(self, x: Tensor) -> Tensor:
        if self.conv:
            call: Any = weit_kernels.kron_conv2d
            return call(x, self.templates, self.scalers, self.bias, padding=self.padding, **self.choice)
        return weit_kernels.kron_linear(x, self.templates, self.scalers, self.bias, **self.choice)


class Materialised(Kron):
    """The dense weight built from templates and scalers in every call, then the library's layer."""

    def __init__(self, operands: Operands) -> None:
        super().__init__(operands, "auto", "auto")

    def forward(self, x: Tensor) -> Tensor:
        weight = weit_kernels.kron_weight(self.templates, self.scalers)
        if self.conv:
            return F.conv2d(x, weight, self.bias, padding=self.padding)
        return F.linear(x, weight, self.bias)


def build(name: str, operands: Operands) -> nn.Module:
    """The module behind a contender's name."""
    if name == DENSE:
        return _dense(operands)
    if name == MATERIALISED:
        return Materialised(operands)
    if name == COMPILED:
        return torch.compile(Materialised(operands), dynamic=False)
    path, _, backend = name.partition("/")
    return Kron(operands, path, backend or "auto")


def _dense(operands: Operands) -> nn.Module:
    layer = dense_layer(operands)
    return layer.to(memory_format=torch.channels_last) if operands.channels_last else layer


def make_step(module: nn.Module, operands: Operands, train: bool) -> Callable[[], dict[str, Tensor]]:
    """One call: the output alone without gradients, or the output and the gradients of ``x`` and all parameters."""
    return step_of(module, operands, "train" if train else "forward")


def check(outputs: dict[str, Tensor], operands: Operands) -> dict[str, Any]:
    """Errors against float64, the largest of all outputs; raises ``WrongResult`` where one is too large.

    ``error`` is relative in norm, ``max_error`` the largest difference over the largest magnitude.
    """
    expected = operands.gradients if len(outputs) > 1 else {"output": operands.output}
    errors: dict[str, float] = {}
    largest = 0.0
    for name, got in outputs.items():
        if name not in expected:  # the dense layer's weight: the contenders have none
            continue
        if got.shape != expected[name].shape:
            raise WrongResult(f"{name} has shape {tuple(got.shape)}, expected {tuple(expected[name].shape)}: not timed")
        difference = got.float() - expected[name]
        errors[name] = float(difference.norm() / expected[name].norm())
        largest = max(largest, float(difference.abs().max() / expected[name].abs().max()))
        if not errors[name] <= BOUNDS[operands.dtype]:  # NaN too
            raise WrongResult(
                f"relative error {errors[name]:.1e} in {name}, more than {BOUNDS[operands.dtype]:.0e}: not timed"
            )
    return {"error": max(errors.values()), "max_error": largest, "errors": errors}
