"""Convolutions whose weight is a sum of Kronecker products over the two channel axes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from weit.nn.factors import KronFactors, check_size
from weit_kernels import kron_conv1d, kron_conv2d, kron_conv3d
from weit_kernels.shapes import check_floating, check_groups, per_axis

Size = int | tuple[int, ...]
DenseConv = nn.Conv1d | nn.Conv2d | nn.Conv3d
Layer = TypeVar("Layer", bound="_KronConv")


class _KronConv(KronFactors):
    _dense: ClassVar[Any]
    _dims: ClassVar[int]
    _conv: ClassVar[Callable[..., Tensor]]

    in_channels: int
    out_channels: int
    kernel_size: tuple[int, ...]
    stride: tuple[int, ...]
    padding: str | tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int
    padding_mode: str
    _reversed_padding_repeated_twice: list[int]

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Size,
        stride: Size = 1,
        padding: str | Size = 0,
        dilation: Size = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: str = "zeros",
        device: Any = None,
        dtype: torch.dtype | None = None,
        *,
        templates: int | nn.Parameter = 8,
        template_shape: tuple[int, int] | None = None,
        layout: str = "block",
        path: str = "auto",
    ) -> None:
        super().__init__()
        in_channels = check_size("in_channels", in_channels)
        out_channels = check_size("out_channels", out_channels)
        dims = self._dims
        sizes = (in_channels, out_channels, per_axis("kernel_size", kernel_size, dims, 1))
        steps = (per_axis("stride", stride, dims, 1), padding, per_axis("dilation", dilation, dims, 1))
        if not isinstance(padding, str):
            steps = (steps[0], per_axis("padding", padding, dims, 0), steps[2])
        groups = check_groups(groups)
        # torch's own constructor checks the rest and brings it to its form.
        try:
            dense = self._dense(*sizes, *steps, groups, bias, padding_mode, device="meta")
        except ValueError as error:
            if " got " in str(error):
                raise
            stride, padding, dilation = steps
            given = f"{in_channels=}, {out_channels=}, {groups=}, {stride=}, {padding=}, {dilation=}, {padding_mode=}"
            raise ValueError(f"{error}, got {given}") from None
        for name in (*nn.Conv2d.__constants__, "_reversed_padding_repeated_twice"):
            setattr(self, name, getattr(dense, name))
        shape = (self.out_channels, self.in_channels // self.groups)
        self._make_factors(shape, self.kernel_size, bias, templates, template_shape, layout, path, device, dtype)

    def forward(self, x: Tensor) -> Tensor:
        self._check_input(x, -1 - self._dims, "in_channels")
        padding: Any = self.padding
        if self.padding_mode != "zeros":
            self._check_paddable(x)
            x, padding = F.pad(x, self._reversed_padding_repeated_twice, self.padding_mode), 0
        return type(self)._conv(
            x,
            self.templates,
            self.scalers,
            self.bias,
            self.stride,
            padding,
            self.dilation,
            self.groups,
            out_channels=self.out_channels,
            layout=self.layout,
            path=self.path,
        )

    def _check_paddable(self, x: Tensor) -> None:
        """What ``F.pad`` refuses, in words about ``x``."""
        check_floating("x", x)
        dims = self._dims
        if x.dim() not in (dims + 1, dims + 2):
            raise ValueError(f"x must have {dims + 1} or {dims + 2} axes, got {tuple(x.shape)}")
        # A mirror leaves out the edge, a circle goes round once.
        spare = {"reflect": 1, "circular": 0}.get(self.padding_mode)
        for axis, size in enumerate(x.shape[-dims:]):
            pads = self._reversed_padding_repeated_twice[2 * (dims - 1 - axis) :][:2]
            if size < 1 or (spare is not None and max(pads) > size - spare):
                raise ValueError(
                    f"x has {size} positions on spatial axis {axis}, too few for {self.padding_mode!r} {pads}"
                )

    def to_conv(self) -> DenseConv:
        """The ``nn.Conv`` with the same weight, bias and settings, on the same device, as trainable."""
        return self._to_dense(self._dense(*conv_settings(self), device="meta"))

    @classmethod
    def from_conv(
        cls: type[Layer],
        conv: DenseConv,
        *,
        templates: int | nn.Parameter = 8,
        template_shape: tuple[int, int] | None = None,
        layout: str = "block",
        path: str = "auto",
    ) -> Layer:
        """The layer nearest to ``conv`` in Frobenius norm, with new templates or with the given ones.

        For new templates, a weight that they do not divide counts as padded with zeros.

        Raises:
            TypeError: ``conv`` is of another class, or of a subclass, which may compute something else.
            ValueError: as the constructor; NaN or infinity in the weight.
        """
        if type(conv) is not cls._dense:
            raise TypeError(f"conv must be an nn.{cls._dense.__name__} itself, got {type(conv).__name__}")
        settings = (*conv_settings(conv), conv.weight.device, conv.weight.dtype)
        layer = cls(*settings, templates=templates, template_shape=template_shape, layout=layout, path=path)
        return layer._fit(conv, fit_templates=not isinstance(templates, nn.Parameter))

    def extra_repr(self) -> str:
        line = f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, stride={self.stride}"
        for name, usual in (("padding", 0), ("dilation", 1)):
            if getattr(self, name) != (usual,) * len(self.kernel_size):
                line += f", {name}={getattr(self, name)}"
        if self.groups != 1:
            line += f", groups={self.groups}"
        if self.padding_mode != "zeros":
            line += f", padding_mode={self.padding_mode}"
        return f"{line}, {self._factors_repr()}"


def conv_settings(conv: Any) -> tuple[Any, ...]:
    """The positional arguments that made a convolution, Kronecker or dense."""
    return (
        conv.in_channels,
        conv.out_channels,
        conv.kernel_size,
        conv.stride,
        conv.padding,
        conv.dilation,
        conv.groups,
        conv.bias is not None,
        conv.padding_mode,
    )


class KronConv1d(_KronConv):
    """``nn.Conv1d`` with the weight ``Σ_t kron(scalers[t], templates[t])`` over the two channel axes.

    Args:
        in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias, padding_mode:
            as in ``nn.Conv1d``.
        templates: how many templates to make, or a parameter ``(N, p, q, kernel)`` to share with other
            layers.
        template_shape, layout, path, device, dtype: as in ``KronLinear``, over ``(out, in / groups)``
            channels.

    Shape:
        ``(batch, in, length)`` or ``(in, length)``, as ``nn.Conv1d``.

    Attributes:
        templates, scalers, bias, weight: as in ``KronLinear``; the kernel belongs to the templates.

    Raises:
        TypeError, ValueError: an argument of the wrong type, size, dtype or device.
    """

    _dense, _dims, _conv, _from_dense = nn.Conv1d, 1, kron_conv1d, "KronConv1d.from_conv"


class KronConv2d(_KronConv):
    """``nn.Conv2d`` likewise: ``templates (N, p, q, kh, kw)``; else as ``KronConv1d``."""

    _dense, _dims, _conv, _from_dense = nn.Conv2d, 2, kron_conv2d, "KronConv2d.from_conv"


class KronConv3d(_KronConv):
    """``nn.Conv3d`` likewise: ``templates (N, p, q, kd, kh, kw)``; else as ``KronConv1d``."""

    _dense, _dims, _conv, _from_dense = nn.Conv3d, 3, kron_conv3d, "KronConv3d.from_conv"
