"""The compiled CUDA kernels: templates first, few rows, and factor gradients. Sources: ``csrc/cuda/``."""

from __future__ import annotations

import importlib
from functools import cache
from types import ModuleType, SimpleNamespace

import torch
from torch import Tensor

from weit_kernels import backends, cpp
from weit_kernels.paths import pointwise
from weit_kernels.paths.blocks import in_order
from weit_kernels.paths.pointwise import Grads, conv_functions
from weit_kernels.paths.synth import Pair
from weit_kernels.shapes import FEW_ROWS

DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def why_not() -> str:
    """Why the kernels cannot be used here; empty if they can."""
    # cpp loads the extension, which holds both.
    return cpp.why_not() or ("" if hasattr(torch.ops.weit_cuda, "few_rows") else "the extension was built without CUDA")


def supports(dtype: torch.dtype) -> str:
    """Why the kernels cannot take a dtype; empty if they can."""
    return "" if dtype in DTYPES else f"the CUDA kernels take float32, float16 and bfloat16, not {dtype}"


def _stream(x: Tensor) -> int:
    stream: int = torch._C._cuda_getCurrentRawStream(x.device.index)  # without making an object of it
    return stream


def _other(path: str, x: Tensor) -> ModuleType:
    """The module that does what has no kernel here."""
    triton = not backends.why_not(path, "triton", x.device, x.dtype)
    return backends.module(path, "triton" if triton else "torch")


def linear(x: Tensor, T: Tensor, S: Tensor, bias: Tensor | None, out: int) -> Tensor:
    """``x (M, in)`` → ``(M, out)``; ``T (N, p, q)`` and ``S (N, m, n)`` may have any strides."""
    # Products of float32 have no matrix instruction; the kernel for few rows takes any number.
    few = x.shape[0] <= FEW_ROWS or x.dtype == torch.float32
    kernel = torch.ops.weit_cuda.few_rows if few else torch.ops.weit_cuda.templates_first
    return kernel.default(x, T, S, bias, out, _stream(x))


def linear_backward(dy: Tensor, x: Tensor, T: Tensor, S: Tensor, need: list[bool]) -> Grads:
    """Gradients of ``x``, ``T`` and ``S``; ``None`` where not needed."""
    return _input_grad(dy, x, T, S) if need[0] else None, *_factor_grads(dy, x, T, S, need[1:])


def _input_grad(dy: Tensor, x: Tensor, T: Tensor, S: Tensor) -> Tensor | None:
    """``dy W``: templates first again where that saves operations, else by panels."""
    N, p, _ = T.shape
    n = S.shape[2]
    operations = N * (1 / n + 1 / p)  # of the dense product's, which the library does a little faster
    # In float32 only few rows have a kernel that is worth its place.
    if operations < 0.8 and (x.dtype != torch.float32 or x.shape[0] <= FEW_ROWS):
        # The kernels copy rows of k in the background; a transposed copy of the templates is nothing beside dy.
        return linear(dy, T.mT.contiguous(), S.mT, None, x.shape[1])
    return _other("panel", x).linear_backward(dy, x, T, S, [True, False, False])[0]


def _factor_grads(dy: Tensor, x: Tensor, T: Tensor, S: Tensor, need: list[bool]) -> Pair:
    if not any(need):
        return None, None
    if x.shape[0] == 0:
        dT, dS = T.new_zeros(T.shape), S.new_zeros(S.shape)
    elif x.dtype == torch.float32:
        _, *grads = _other("templates_first", x).linear_backward(dy, x, T, S, [False, *need])
        return grads[0], grads[1]
    elif _panels_are_faster(x.shape[0], T, S, sum(need)):
        _, *grads = _other("panel", x).linear_backward(dy, x, T, S, [False, *need])
        return grads[0], grads[1]
    else:
        dT, dS = factor_grads_kernel(dy, x, T, S, need)
    return dT if need[0] else None, dS if need[1] else None


def factor_grads_kernel(dy: Tensor, x: Tensor, T: Tensor, S: Tensor, need: list[bool]) -> tuple[Tensor, Tensor]:
    """``dT`` and ``dS`` of 16-bit operands, empty where not needed; ``_factor_grads`` knows where others are faster."""
    kernel = torch.ops.weit_cuda.weight_grads.default
    if S.shape[1] >= S.shape[2]:
        dT, dS = kernel(dy, x, T, S, need, _stream(x))
        return dT, dS
    # The sums do not care which side is called the input, and this is the cheaper order.
    dT, dS = kernel(x, dy, T.mT, S.mT, need, _stream(x))
    return in_order(dT.mT, T.dtype) if need[0] else dT, in_order(dS.mT, S.dtype) if need[1] else dS


def _panels_are_faster(rows: int, T: Tensor, S: Tensor, wanted: int) -> bool:
    """Whether the gradient of ``W``, part by part, takes less time than the kernel that makes none of it.

    By rates that an H100 showed over the suite in bfloat16 (docs/gpu_h100.md), whatever the GPU: the library's products
    650 TFLOP/s, the kernels' 150 to 390; contracting ``W``'s gradient 31 µs and 5 ps for each of its numbers.
    """
    (N, m, n), (_, p, q) = S.shape, T.shape
    weights = m * n * p * q
    if m < n:
        m, n, p, q = n, m, q, p
    panels = 2 * rows * weights / 650e12 + 31e-6 + 5e-12 * weights
    kernel = wanted * 2 * rows * n * N * p * (q + m) / 300e12 + 20e-6
    return panels < kernel


@cache
def _swaps(device_type: str) -> ModuleType:
    """What puts channels last and first: a kernel, or torch's copies where there is no Triton."""
    if backends.why_not("panel", "triton", torch.device(device_type), torch.float32):
        return pointwise
    return importlib.import_module("weit_kernels.triton.pixels")


def _rows_of(maps: Tensor) -> Tensor:
    rows: Tensor = _swaps(maps.device.type).rows_of(maps)
    return rows


def _maps_of(rows: Tensor, like: Tensor) -> Tensor:
    maps: Tensor = _swaps(rows.device.type).maps_of(rows, like)
    return maps


_conv, _conv_backward = conv_functions(linear, linear_backward, _rows_of, _maps_of)

PATHS = {
    "templates_first": SimpleNamespace(
        linear=linear, linear_backward=linear_backward, conv=_conv, conv_backward=_conv_backward
    ),
}
