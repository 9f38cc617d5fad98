"""The public calls but for convolutions: check the arguments, bring the layout to ``block``, run the operator."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from functools import partial

import torch
from torch import Tensor

from weit_kernels import direct, reference
from weit_kernels.backends import exchanged, require_runnable
from weit_kernels.ops import autocast, call, direct_call
from weit_kernels.shapes import LAYOUTS, check_ceil, check_choice, check_factors, check_floating, check_linear
from weit_kernels.transforms import by_dense_weight


def kron_linear(
    x: Tensor,
    templates: Tensor,
    scalers: Tensor,
    bias: Tensor | None = None,
    *,
    out_features: int | None = None,
    layout: str = "block",
    path: str = "auto",
    backend: str = "auto",
) -> Tensor:
    """Apply ``W = Σ_t kron(S_t, T_t)`` (block) or ``Σ_t kron(T_t, S_t)`` (interleaved) without building ``W``.

    Equals ``F.linear(x, kron_weight(templates, scalers), bias)``; differentiable in all four tensors, twice where
    the dense layer is. The backward pass keeps the inputs only.

    Args:
        x: ``(..., in)``, ``n·q - q < in <= n·q``; float64, float32, bfloat16 or float16; any strides.
        templates: ``(N, p, q)``.
        scalers: ``(N, m, n)``.
        bias: ``(out,)`` or ``None``.
        out_features: ``out``, ``m·p`` by default; less where the last block is ragged.
        layout: ``"block"`` or ``"interleaved"``.
        path: ``"auto"``, ``"templates_first"``, ``"scalers_first"``, ``"panel"`` or ``"on_the_fly"``.
        backend: ``"auto"``, ``"torch"``, ``"cpp"``, ``"triton"`` or ``"cuda"``.

    Returns:
        ``(..., out)``, dtype of ``x``.

    Raises:
        TypeError: an argument is no floating tensor, or dtypes differ outside autocast.
        ValueError: shapes, devices or a choice do not fit.
        RuntimeError: the path or backend asked for cannot run here.
    """
    x, bias = autocast(x, bias)
    key = direct.key((x, templates, scalers, bias), (out_features, layout, path, backend))
    if key is not None and (known := direct.recall(key)) is not None:
        return known(x, templates, scalers, bias)
    shape = check_linear(x, templates, scalers, bias, out_features, layout)
    require_runnable(path, backend, x.device, x.dtype, swap=layout == "interleaved")
    if by_dense_weight():
        templates, scalers = templates.to(x.dtype), scalers.to(x.dtype)
        return reference.kron_linear(x, templates, scalers, bias, out_features=out_features, layout=layout)
    return apply_linear(x, templates, scalers, bias, shape.out_features, layout, path, backend, key)


def apply_linear(
    x: Tensor,
    templates: Tensor,
    scalers: Tensor,
    bias: Tensor | None,
    out: int,
    layout: str,
    path: str,
    backend: str,
    key: Hashable = None,
) -> Tensor:
    """``kron_linear`` on checked arguments; later calls with the same ``key`` come here no more."""
    swap = layout == "interleaved"
    settings = (trains(x, templates, scalers), exchanged(path) if swap else path, backend)

    def operator(rows: Tensor, T: Tensor, S: Tensor, bias: Tensor | None) -> Tensor:
        y = call("kron_linear", rows, T, S, bias, out, *settings)
        if key is not None and (shorter := direct_call("kron_linear", rows, T, S, out, settings)):
            run = shorter.function(learns=trains(x, templates, scalers, bias))
            direct.remember(key, partial(_in_block_form, run, swap))
        return y

    return _in_block_form(operator, swap, x, templates, scalers, bias)


def _in_block_form(
    linear: Callable[..., Tensor], swap: bool, x: Tensor, templates: Tensor, scalers: Tensor, bias: Tensor | None
) -> Tensor:
    """``linear``, which takes rows and the block layout, on ``x`` with any leading axes and, if ``swap``, interleaved."""
    if swap:  # kron(T, S) is the block form with the two factors' parts exchanged
        templates, scalers = scalers, templates
    if x.dim() == 2:
        return linear(x, templates, scalers, bias)
    y = linear(x.reshape(-1, x.shape[-1]), templates, scalers, bias)
    # Nobody's view, so that it may be overwritten in any mode.
    return torch.ops.aten._unsafe_view.default(y, [*x.shape[:-1], y.shape[1]])


def trains(*tensors: Tensor | None) -> bool:
    """Whether a backward pass may follow."""
    return torch.is_grad_enabled() and any(tensor is not None and tensor.requires_grad for tensor in tensors)


def kron_weight(
    templates: Tensor,
    scalers: Tensor,
    *,
    out_features: int | None = None,
    in_features: int | None = None,
    layout: str = "block",
) -> Tensor:
    """The dense weight ``Σ_t kron(S_t, T_t)`` (``"block"``) or ``Σ_t kron(T_t, S_t)`` (``"interleaved"``).

    Args:
        templates: ``(N, p, q)``, or ``(N, p, q, *kernel)`` for a convolution.
        scalers: ``(N, m, n)``.
        out_features, in_features: cut the weight to these; ``m·p`` and ``n·q`` by default.
        layout: ``"block"`` or ``"interleaved"``, the order in which the WAVE and WeiT papers write the product.

    Returns:
        ``(out, in, *kernel)``, differentiable in both factors.

    Raises:
        TypeError: a factor is no floating tensor, or dtypes differ outside autocast. ValueError: sizes or layout do not fit.
    """
    check_floating("templates", templates)
    check_factors(templates, scalers, max(0, templates.dim() - 3))
    check_choice("layout", layout, LAYOUTS)
    _, p, q = templates.shape[:3]
    _, m, n = scalers.shape
    if out_features is not None:
        check_ceil("out_features", out_features, m, p, f"m={m} blocks of p={p}")
    if in_features is not None:
        check_ceil("in_features", in_features, n, q, f"n={n} blocks of q={q}")
    return reference.kron_weight(templates, scalers, out_features=out_features, in_features=in_features, layout=layout)
