"""The library convolution under the paths, and its gradients."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from types import ModuleType

import torch
from torch import Tensor

from weit_kernels.paths.blocks import accumulator, row_blocks, workspace


@dataclass(frozen=True)
class ConvArgs:
    """Stride, padding and dilation, one entry a spatial axis, and groups.

    ``layout`` is ``"block"`` unless the convolution is grouped: channels cannot be reordered across groups.
    """

    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int = 1
    layout: str = "block"

    @classmethod
    def plain(cls, axes: int) -> ConvArgs:
        """Steps of one along so many axes, without padding."""
        return cls((1,) * axes, (0,) * axes, (1,) * axes)

    def output_size(self, size: Sequence[int], kernel: Sequence[int]) -> torch.Size:
        """Spatial size of the result for an input of spatial ``size``."""
        axes = zip(size, kernel, self.stride, self.padding, self.dilation, strict=True)
        return torch.Size((s + 2 * pad - d * (k - 1) - 1) // st + 1 for s, k, st, pad, d in axes)

    def pointwise(self, kernel: Sequence[int]) -> bool:
        """Whether the convolution is one matrix product for each image."""
        axes = zip(kernel, self.stride, self.padding, strict=True)
        return self.groups == 1 and all(axis == (1, 1, 0) for axis in axes)


def in_step(size: Sequence[int], itemsize: int) -> bool:
    """Whether the channels of contiguous maps are 16 bytes apart, or a multiple: then GPUs read them in full width."""
    return prod(size) * itemsize % 16 == 0


def channels_last(maps: Tensor) -> bool:
    """Whether the pixels' channels lie side by side and, unlike those of a contiguous tensor, nothing else does."""
    return not maps.is_contiguous() and maps.movedim(1, -1).is_contiguous()


def memory_format(maps: Tensor) -> torch.memory_format:
    """The format that a convolution of these maps returns, as the library's does."""
    formats = {4: torch.channels_last, 5: torch.channels_last_3d}
    return formats.get(maps.dim(), torch.contiguous_format) if channels_last(maps) else torch.contiguous_format


def run_conv(
    path: ModuleType, x: Tensor, T: Tensor, S: Tensor, bias: Tensor | None, out: int, args: ConvArgs
) -> Tensor:
    """A path's convolution of maps of any strides; the result has ``memory_format(x)``."""
    form = memory_format(x)
    return path.conv(_maps_for(path, x, T, args), T, S, bias, out, args).contiguous(memory_format=form)


def run_conv_backward(
    path: ModuleType, dy: Tensor, x: Tensor, T: Tensor, S: Tensor, need: list[bool], args: ConvArgs
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Its gradients; that of ``x`` has ``memory_format(x)``."""
    form = memory_format(x)
    maps = _maps_for(path, x, T, args)
    dy = dy.contiguous(memory_format=memory_format(maps))
    dx, dT, dS = path.conv_backward(dy, maps, T, S, need, args)
    return None if dx is None else dx.contiguous(memory_format=form), dT, dS


def _maps_for(path: ModuleType, x: Tensor, T: Tensor, args: ConvArgs) -> Tensor:
    """The maps as a path takes them: only panels, which leave them to the library, take channels last."""
    form = memory_format(x) if getattr(path, "CHANNELS_LAST", False) and not args.pointwise(T.shape[3:]) else None
    return x.contiguous(memory_format=form or torch.contiguous_format)


def convolve(x: Tensor, weight: Tensor, args: ConvArgs, bias: Tensor | None = None, *, keep: bool = True) -> Tensor:
    """``x (B, in, *spatial)``, ``weight (out, in / groups, *kernel)`` → ``(B, out, *spatial')``, in ``x``'s format.

    With ``keep=False`` the result may lie in workspace memory, for use before the next block.
    """
    if args.pointwise(weight.shape[2:]):
        maps, filters = x.flatten(2), weight.flatten(1)
        size = (x.shape[0], filters.shape[0], maps.shape[2])
        y = x.new_empty(size) if keep else workspace("block", x, *size)
        _products(filters, maps, y)
        if bias is not None:
            y += bias.view(-1, 1)
        return y.view(*size[:2], *x.shape[2:])
    zeros = [0] * len(args.stride)
    y = torch.convolution(x, weight, bias, args.stride, args.padding, args.dilation, False, zeros, args.groups)
    return y.contiguous(memory_format=memory_format(x))


def conv_gradients(
    dy: Tensor, x: Tensor, weight: Tensor, args: ConvArgs, need: Sequence[bool]
) -> tuple[Tensor | None, Tensor | None]:
    """Gradients of ``x`` and ``weight``; ``None`` where not needed."""
    if args.pointwise(weight.shape[2:]):
        dy_maps, x_maps, flat = dy.flatten(2), x.flatten(2), weight.flatten(1)
        dx = _products(flat.t(), dy_maps, torch.empty_like(x_maps)).view(x.shape) if need[0] else None
        dw = _sum_of_products(dy_maps, x_maps).view(weight.shape) if need[1] else None
        return dx, dw
    zeros = [0] * len(args.stride)
    dx, dw, _ = torch.ops.aten.convolution_backward(
        dy, x, weight, None, args.stride, args.padding, args.dilation, False, zeros, args.groups, [*need, False]
    )
    return dx, dw


def _products(matrix: Tensor, maps: Tensor, result: Tensor) -> Tensor:
    """``result[b] = matrix @ maps[b]``, so many images at a time that copies of the matrix take bounded memory."""
    for b in row_blocks(maps, 0, matrix.numel()):
        torch.bmm(matrix.expand(b.stop - b.start, -1, -1), maps[b], out=result[b])
    return result


def _sum_of_products(dy: Tensor, x: Tensor) -> Tensor:
    """``Σ_b dy[b] @ x[b].mT``, the same for the products, each as large as the result."""
    total = accumulator(x, dy.shape[1], x.shape[1])
    for b in row_blocks(x, 0, total.numel(), gradient=True):
        total += torch.bmm(dy[b], x[b].mT).sum(0, dtype=total.dtype)
    return total.to(x.dtype)
