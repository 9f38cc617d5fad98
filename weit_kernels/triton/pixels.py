"""Channels of maps put last, and first again, tile by tile: what a convolution of one tap does around its linear form.

Torch's copies between the two orders take 0.30 ms for the 96 MB of ``convnext_pw`` on an H200, these 0.065, the whole layer
on maps whose channels are last 0.062.
"""

from __future__ import annotations

from functools import partial
from math import prod

import triton
import triton.language as tl
from torch import Tensor

from weit_kernels.paths import pointwise

# A program's tile: 128 bytes of 16-bit numbers a line, and twice as many lines where there are. On an H200 1536 channels of
# 14 x 14 took 64 us with tiles of 64 x 64, 49 with these; of 49 lines (7 x 7 pixels) a taller one would be mostly empty.
_LINES, _WIDE = 128, 64


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
        tall = _LINES if height > _WIDE else _WIDE
        grid = (batch * triton.cdiv(height, tall) * triton.cdiv(width, _WIDE),)
        _kernel[grid](source, result, height, width, tall, _WIDE, num_warps=tall // 16)
    return result


@triton.jit
def _kernel(source, result, height, width, TALL: tl.constexpr, WIDE: tl.constexpr):
    """A program swaps one tile of one image's matrix."""
    tall, wide, program = tl.cdiv(height, TALL), tl.cdiv(width, WIDE), tl.program_id(0)
    rest = program // wide
    image = (rest // tall).to(tl.int64) * height * width
    i = (rest % tall) * TALL + tl.arange(0, TALL)
    j = (program % wide) * WIDE + tl.arange(0, WIDE)
    inside = (i < height)[:, None] & (j < width)[None, :]
    tile = tl.load(source + image + i[:, None].to(tl.int64) * width + j[None, :], mask=inside, other=0.0)
    tl.store(result + image + j[:, None].to(tl.int64) * height + i[None, :], tl.trans(tile), mask=tl.trans(inside))
