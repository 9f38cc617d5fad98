"""The compiled CUDA kernels: templates first, few rows, factor gradients, and panels of ``W``. Sources: ``csrc/cuda/``."""

from __future__ import annotations

import sys
from functools import partial
from types import ModuleType, SimpleNamespace

import torch
from torch import Tensor

from weit_kernels import backends, cpp
from weit_kernels.paths import panel
from weit_kernels.paths.blocks import workspace
from weit_kernels.paths.pointwise import conv_functions

Grads = tuple[Tensor | None, Tensor | None, Tensor | None]
Pair = tuple[Tensor | None, Tensor | None]

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
MOST_ROWS = 64  # few rows are bound by reading T once, more by multiplying: not measured


def why_not() -> str:
    """Why the kernels cannot be used here; empty if they can."""
    # cpp loads the extension, which holds both.
    return cpp.why_not() or ("" if hasattr(torch.ops.weit_cuda, "few_rows") else "the extension was built without CUDA")


def supports(dtype: torch.dtype) -> str:
    """Why the kernels cannot take a dtype; empty if they can."""
    return "" if dtype in DTYPES else f"the CUDA kernels take float32, float16 and bfloat16, not {dtype}"


def _stream(x: Tensor) -> int:
    stream: int = torch.cuda.current_stream(x.device).cuda_stream
    return stream


def _other(path: str, x: Tensor) -> ModuleType:
    """The module that does what has no kernel here."""
    triton = not backends.why_not(path, "triton", x.device.type, x.dtype)
    return backends.module(path, "triton" if triton else "torch")


def linear(x: Tensor, T: Tensor, S: Tensor, bias: Tensor | None, out: int) -> Tensor:
    """``x (M, in)`` → ``(M, out)``; ``T (N, p, q)`` and ``S (N, m, n)`` may have any strides."""
    # Products of float32 have no matrix instruction; the kernel for few rows takes any number.
    few = x.shape[0] <= MOST_ROWS or x.dtype == torch.float32
    kernel = torch.ops.weit_cuda.few_rows if few else torch.ops.weit_cuda.templates_first
    return kernel.default(x, T, S, bias, out, _stream(x))


def linear_backward(dy: Tensor, x: Tensor, T: Tensor, S: Tensor, need: list[bool]) -> Grads:
    """Gradients of ``x``, by the adjoint order of another backend, and of ``T`` and ``S``; ``None`` where not needed."""
    dx = _other("scalers_first", dy).linear(dy, T.mT, S.mT, None, x.shape[1]) if need[0] else None
    return dx, *_factor_grads(dy, x, T, S, need[1:])


def _factor_grads(dy: Tensor, x: Tensor, T: Tensor, S: Tensor, need: list[bool]) -> Pair:
    if not any(need):
        return None, None
    if x.shape[0] == 0:
        dT, dS = torch.zeros_like(T), torch.zeros_like(S)
    elif x.dtype == torch.float32:
        _, *grads = _other("templates_first", x).linear_backward(dy, x, T, S, [False, *need])
        return grads[0], grads[1]
    elif S.shape[1] >= S.shape[2]:
        dT, dS = torch.ops.weit_cuda.weight_grads.default(dy, x, T, S, need, _stream(x))
    else:  # the sums do not care which side is called the input, and this is the cheaper order
        dT, dS = (
            grad.mT.contiguous() if wanted else grad
            for grad, wanted in zip(
                torch.ops.weit_cuda.weight_grads.default(x, dy, T.mT, S.mT, need, _stream(x)), need, strict=True
            )
        )
    return dT if need[0] else None, dS if need[1] else None


def weight(T: Tensor, S: Tensor, out: int, inn: int, layout: str, scratch_bytes: int) -> Tensor:
    """``W = Σ_t S_t ⊗ T_t`` as in ``weit_kernels.paths.synth``, in one launch and its final order."""
    made = workspace("panel", T, out, inn, *T.shape[3:])
    torch.ops.weit_cuda.synth.default(T.flatten(2), S, made, layout == "interleaved", _stream(T))
    return made


def add_gradients(
    dweight: Tensor, T: Tensor, S: Tensor, dT: Tensor | None, dS: Tensor | None, layout: str, scratch_bytes: int
) -> None:
    """Add to ``dT`` and ``dS``, float32, where present, what ``dweight (out, in, *kernel)`` contributes."""
    # Rows of a larger sum need not lie side by side, as the kernel wants them.
    sums = [None if grad is None else grad.contiguous() for grad in (dT, dS)]
    torch.ops.weit_cuda.synth_grads.default(
        dweight.contiguous(), T.flatten(2), S, *sums, layout == "interleaved", _stream(T)
    )
    for grad, total in zip((dT, dS), sums, strict=True):
        if grad is not None and total is not None and total is not grad:
            grad.copy_(total)


_conv, _conv_backward = conv_functions(linear, linear_backward)
_synth = sys.modules[__name__]  # the panel's loop takes a module with the two functions above

PATHS = {
    "templates_first": SimpleNamespace(
        linear=linear, linear_backward=linear_backward, conv=_conv, conv_backward=_conv_backward
    ),
    "panel": SimpleNamespace(
        linear=partial(panel.linear, synth=_synth),
        linear_backward=partial(panel.linear_backward, synth=_synth),
        conv=partial(panel.conv, synth=_synth),
        conv_backward=partial(panel.conv_backward, synth=_synth),
    ),
}
