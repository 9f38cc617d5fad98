"""The compiled CPU kernels: both orders, fused in blocks of tokens that stay in one core's cache. Sources: ``csrc/``."""

from __future__ import annotations

import importlib
from types import SimpleNamespace

import torch
from torch import Tensor

from weit_kernels.paths.pointwise import conv_functions

Grads = tuple[Tensor | None, Tensor | None, Tensor | None]

DTYPES = (torch.float32, torch.float64, torch.bfloat16)


try:
    importlib.import_module("weit_kernels._C")  # registers torch.ops.weit_cpp
except ImportError as error:
    _missing = isinstance(error, ModuleNotFoundError) or "cannot import name" in str(error)
    _reason = (
        "the compiled extension was not built (csrc/README.md)"
        if _missing
        else f"the compiled extension does not load: {error}"
    )
else:
    _reason = ""


def why_not() -> str:
    """Why the extension cannot be used here; empty if it can."""
    return _reason


def supports(path: str, dtype: torch.dtype, kernel: tuple[int, ...], groups: int) -> str:
    """Why the kernels cannot compute a path; empty if they can."""
    return "" if dtype in DTYPES else f"the compiled kernels take float32, float64 and bfloat16, not {dtype}"


def _path(scalers_first: bool) -> SimpleNamespace:
    """The functions of one order, on block-layout operands as in ``weit_kernels.paths``."""

    def linear(x: Tensor, T: Tensor, S: Tensor, bias: Tensor | None, out: int) -> Tensor:
        return torch.ops.weit_cpp.chain.default(x, T, S, bias, out, scalers_first)

    def linear_backward(dy: Tensor, x: Tensor, T: Tensor, S: Tensor, need: list[bool]) -> Grads:
        grads = torch.ops.weit_cpp.chain_backward.default(dy, x, T, S, need, scalers_first)
        dx, dT, dS = (grad if wanted else None for grad, wanted in zip(grads, need, strict=True))
        return dx, dT, dS

    conv, conv_backward = conv_functions(linear, linear_backward)
    return SimpleNamespace(linear=linear, linear_backward=linear_backward, conv=conv, conv_backward=conv_backward)


PATHS = {"templates_first": _path(False), "scalers_first": _path(True)}
