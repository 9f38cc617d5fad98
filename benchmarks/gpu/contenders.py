"""What is compared, and the float64 result that each must reproduce before it is timed."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.contenders.dense import Materialised, dense_layer
from benchmarks.contenders.weit import AUTO, Kron
from benchmarks.operands import Operands, WrongResult, errors
from benchmarks.suite import SuiteShape, load
from weit_kernels.shapes import BACKENDS, PATHS

DENSE = "dense"
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


def build(name: str, operands: Operands) -> nn.Module:
    """The module behind a contender's name."""
    if name == DENSE:
        return dense_layer(operands)
    if name == MATERIALISED:
        return Materialised(operands)
    if name == COMPILED:
        return torch.compile(Materialised(operands), dynamic=False)
    path, _, backend = name.partition("/")
    return Kron(operands, path, backend or "auto")


def check(outputs: dict[str, Tensor], operands: Operands) -> dict[str, Any]:
    """Errors against float64, the largest of all outputs; raises ``WrongResult`` where one is too large.

    ``error`` is relative in norm, ``max_error`` the largest difference over the largest magnitude.
    """
    found = errors(outputs, operands)
    for name, error in found.items():
        if not error <= BOUNDS[operands.dtype]:  # NaN too
            raise WrongResult(
                f"relative error {error:.1e} in {name}, more than {BOUNDS[operands.dtype]:.0e}: not timed"
            )
    expected = operands.expected(outputs)
    largest = max(float((outputs[name] - expected[name]).abs().max() / expected[name].abs().max()) for name in found)
    return {"error": max(found.values()), "max_error": largest, "errors": found}
