"""The public convolutions: check the arguments, bring the layout to ``block``, run the operator."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from weit_kernels import direct, reference
from weit_kernels.backends import Form, require_runnable
from weit_kernels.functional import apply_linear, trains
from weit_kernels.ops import autocast, call, direct_call
from weit_kernels.paths.convolution import ConvArgs, channels_last, memory_format
from weit_kernels.shapes import check_conv, check_groups, check_spatial, conv_padding, per_axis
from weit_kernels.transforms import by_dense_weight


def kron_conv1d(
    x: Tensor,
    templates: Tensor,
    scalers: Tensor,
    bias: Tensor | None = None,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] | str = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
    *,
    out_channels: int | None = None,
    layout: str = "block",
    path: str = "auto",
    backend: str = "auto",
) -> Tensor:
    """``F.conv1d`` with the weight ``Σ_t kron(S_t, T_t)`` over the two channel axes, without building it.

    Args:
        x: ``(batch, in, length)`` or ``(in, length)``.
        templates: ``(N, p, q, kernel)``.
        scalers: ``(N, m, n)`` with ``in / groups`` covered by ``n·q`` and ``out`` by ``m·p``.
        bias: ``(out,)`` or ``None``.
        stride, padding, dilation, groups: as in ``F.conv1d``; ``padding`` also takes ``"same"`` and ``"valid"``.
        out_channels: ``out``, ``m·p`` by default.
        layout, path, backend: as in ``kron_linear``. Grouped convolutions have the ``"panel"`` path only.

    Returns:
        What ``F.conv1d`` returns for the dense weight.

    Raises:
        TypeError, ValueError, RuntimeError: as ``kron_linear``.
    """
    return _conv(1, x, templates, scalers, bias, stride, padding, dilation, groups, out_channels, layout, path, backend)


def kron_conv2d(
    x: Tensor,
    templates: Tensor,
    scalers: Tensor,
    bias: Tensor | None = None,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] | str = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
    *,
    out_channels: int | None = None,
    layout: str = "block",
    path: str = "auto",
    backend: str = "auto",
) -> Tensor:
    """``F.conv2d`` likewise: ``x (batch, in, H, W)``, ``templates (N, p, q, kh, kw)``; else as ``kron_conv1d``."""
    return _conv(2, x, templates, scalers, bias, stride, padding, dilation, groups, out_channels, layout, path, backend)


def kron_conv3d(
    x: Tensor,
    templates: Tensor,
    scalers: Tensor,
    bias: Tensor | None = None,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] | str = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
    *,
    out_channels: int | None = None,
    layout: str = "block",
    path: str = "auto",
    backend: str = "auto",
) -> Tensor:
    """``F.conv3d`` likewise: ``x (batch, in, D, H, W)``, ``templates (N, p, q, kd, kh, kw)``; as ``kron_conv1d``."""
    return _conv(3, x, templates, scalers, bias, stride, padding, dilation, groups, out_channels, layout, path, backend)


def _conv(
    dims: int,
    x: Tensor,
    templates: Tensor,
    scalers: Tensor,
    bias: Tensor | None,
    stride: int | Sequence[int],
    padding: int | Sequence[int] | str,
    dilation: int | Sequence[int],
    groups: int,
    out_channels: int | None,
    layout: str,
    path: str,
    backend: str,
) -> Tensor:
    x, bias = autocast(x, bias)
    choices = (dims, stride, padding, dilation, groups, out_channels, layout, path, backend)
    key = direct.key((x, templates, scalers, bias), choices)
    if key is not None and (known := direct.recall(key)) is not None and x.is_contiguous():
        return known(x, templates, scalers, bias)
    groups = check_groups(groups)
    shape = check_conv(dims, x, templates, scalers, bias, groups, out_channels, layout)
    strides, dilations = per_axis("stride", stride, dims, 1), per_axis("dilation", dilation, dims, 1)
    pads, uneven = conv_padding(padding, shape.kernel, strides, dilations)
    settings = (strides, pads, dilations, groups)
    form = Form.of(shape.kernel, ConvArgs(*settings))
    linear = form.pointwise and x.dim() == dims + 2 and channels_last(x) and not by_dense_weight()
    require_runnable(path, backend, x.device, x.dtype, form, swap=linear and layout == "interleaved")
    if linear:
        pixels = x.movedim(1, -1)
        y = apply_linear(pixels, templates.flatten(2), scalers, bias, shape.out_features, layout, path, backend)
        return y.movedim(-1, 1)
    maps = x if x.dim() == dims + 2 else x.unsqueeze(0)
    if any(uneven):
        maps = F.pad(maps, uneven)
    check_spatial(maps.shape[2:], shape.kernel, pads, dilations)

    if by_dense_weight():
        templates, scalers = templates.to(x.dtype), scalers.to(x.dtype)
        conv: dict[str, Any] = {"stride": strides, "padding": pads, "dilation": dilations, "groups": groups}
        y = reference.kron_conv(maps, templates, scalers, bias, out_channels=shape.out_features, layout=layout, **conv)
        return y if x.dim() == dims + 2 else y.squeeze(0)
    choice = (trains(x, templates, scalers), path, backend)
    if layout == "interleaved" and groups == 1:
        # One reordering of channels on each side; the contraction then is the block one.
        wanted = memory_format(maps)
        maps = _reorder(maps, shape.q, shape.n)
        bias = None if bias is None else _reorder(bias[None], shape.p, shape.m)[0]
        y = call("kron_conv", maps, templates, scalers, bias, shape.m * shape.p, *settings, "block", *choice)
        y = _reorder(y, shape.m, shape.p)[:, : shape.out_features]
        y = y.contiguous(memory_format=wanted)
    else:
        out, args = shape.out_features, (*settings, layout, *choice)
        y = call("kron_conv", maps, templates, scalers, bias, out, *args)
        if (
            key is not None
            and maps is x
            and x.is_contiguous()
            and (shorter := direct_call("kron_conv", x, templates, scalers, out, args))
        ):
            direct.remember(key, shorter.function(learns=trains(x, templates, scalers, bias)))
    return y if x.dim() == dims + 2 else y.squeeze(0)


def _reorder(maps: Tensor, major: int, minor: int) -> Tensor:
    """Channels ordered ``(major, minor)``, padded if ragged → ordered ``(minor, major)``."""
    missing = major * minor - maps.shape[1]
    if missing:
        maps = F.pad(maps, (*[0, 0] * (maps.dim() - 2), 0, missing))
    return maps.unflatten(1, (major, minor)).transpose(1, 2).flatten(1, 2)
