"""Channels of maps put last, and first again, tile by tile: what a convolution of one tap does around its linear form.

Torch's copies between the two orders took 0.28 ms for 96 MB of ``convnext_pw`` on an H200, the whole layer on maps whose
channels are last 0.06. Never run on a GPU since they are no longer torch's.
"""

from __future__ import annotations

from functools import partial
from math import prod

import triton
import triton.language as tl
from torch import Tensor

from weit_kernels.paths import pointwise

_TILE = 64  # numbers along either side of a program's tile: 128 bytes of 16-bit ones


def rows_of(maps: Tensor) -> Tensor:
    """Contiguous ``(B, channels, *spatial)`` → contiguous ``(B·pixels, channels)``."""
    batch, channels, *size = maps.shape
    return _swap(maps, batch, channels, prod(size)).view(batch * prod(size), channels)


def maps_of(rows: Tensor, like: Tensor) -> Tensor:
    """Contiguous ``(B·pixels, channels)`` → contiguous ``(B, channels, *spatial)``; batch and sizes as ``like`` has them."""
    batch, _, *size = like.shape
    return _swap(rows, batch, prod(size), rows.shape[1]).view(batch, rows.shape[1], *size)


conv_functions = partial(pointwise.conv_functions, to_rows=rows_of, to_maps=maps_of)


def _swap(source: Tensor, batch: int, height: int, width: int) -> Tensor:
    """``(B, width, height)`` from ``source``, which is ``(B, height, width)`` in whatever shape; a view if either is one."""
    if height == 1 or width == 1:
        return source
    result = source.new_empty(batch, width, height)
    if result.numel():
        grid = (batch * triton.cdiv(height, _TILE) * triton.cdiv(width, _TILE),)
        _kernel[grid](source, result, height, width, _TILE, num_warps=4)
    return result


@triton.jit
def _kernel(source, result, height, width, TILE: tl.constexpr):
    """A program swaps one tile of one image's matrix."""
    tall, wide, program = tl.cdiv(height, TILE), tl.cdiv(width, TILE), tl.program_id(0)
    rest = program // wide
    image = (rest // tall).to(tl.int64) * height * width
    i = (rest % tall) * TILE + tl.arange(0, TILE)
    j = (program % wide) * TILE + tl.arange(0, TILE)
    inside = (i < height)[:, None] & (j < width)[None, :]
    tile = tl.load(source + image + i[:, None].to(tl.int64) * width + j[None, :], mask=inside, other=0.0)
    tl.store(result + image + j[:, None].to(tl.int64) * height + i[None, :], tl.trans(tile), mask=tl.trans(inside))
