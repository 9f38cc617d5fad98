"""Tile sizes, launch options and what both kernels share."""

from __future__ import annotations

from dataclasses import astuple, dataclass
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

WARPS, STAGES = 8, 3


@dataclass(frozen=True)
class Tiles:
    """Sizes of one program: ``tokens``, ``first`` and ``second`` as each kernel's docstring says.

    All are powers of two. A product's sides are 16 at the least, so small operands are padded with masked zeros.
    """

    tokens: int
    first_outer: int
    first_inner: int
    templates: int
    second_inner: int
    second_outer: int


def power_of_two(value: int, most: int) -> int:
    """The smallest power of two that holds ``value``, but no more than ``most``."""
    return min(most, 1 << max(0, value - 1).bit_length())


def choose_tiles(regrouped: int, contracted: int, kept: int, mixed: int, N: int, itemsize: int) -> Tiles:
    """Tiles for a kernel that contracts ``contracted`` first, regroups, then contracts ``regrouped`` and templates.

    Args:
        regrouped: rows of the first product besides tokens (``j``, or ``k``), inner size of the second.
        contracted: inner size of the first product (``k``, or ``j``).
        kept: columns of the first product besides templates (``a``, or ``i``), rows of the second.
        mixed: columns of the second product (``i``, or ``a``).
        N: templates.
        itemsize: bytes of an operand; float32 gets half the depth.
    """
    templates = power_of_two(N, 8)
    rows = max(power_of_two(regrouped, 16), 16 // templates)
    tokens = max(1, 128 // rows)
    columns = max(power_of_two(kept, 128 // templates), 16 // templates, -(-16 // tokens))
    outer = max(16, power_of_two(mixed, max(16, 16384 // (tokens * columns))))
    depth = max(16, power_of_two(contracted, 128 // itemsize))
    return Tiles(tokens, rows, depth, templates, columns, outer)


def launch(
    kernel: Any, tiles: Tiles, a_tile: int, i_tile: int, x: Tensor, T: Tensor, S: Tensor, bias: Tensor | None, out: int
) -> Tensor:
    """Run either kernel: ``x (M, in)``, ``T (N, p, q)`` and ``S (N, m, n)`` of any strides → ``(M, out)``."""
    (N, p, q), (_, m, n), M = T.shape, S.shape, x.shape[0]
    y = x.new_empty(M, out)
    if M == 0:
        return y
    grid = (triton.cdiv(M, tiles.tokens), triton.cdiv(p, a_tile), triton.cdiv(m, i_tile))
    sizes = (M, N, m, n, p, q, x.shape[1], out, *T.stride(), *S.stride(), *astuple(tiles))
    present = bias is not None
    kernel[grid](x, T, S, bias if present else y, y, *sizes, present, precision(x), num_warps=WARPS, num_stages=STAGES)
    return y


def precision(x: Tensor) -> str:
    """How ``dot`` multiplies: tf32 only where torch allows it for float32."""
    if not x.is_cuda:
        # Triton's interpreter would multiply the bit patterns of bfloat16; its products are exact in float32.
        return "wide" if x.dtype == torch.bfloat16 else "ieee"
    return "tf32" if torch.backends.cuda.matmul.allow_tf32 else "ieee"


@triton.jit
def dot(a, b, total, PRECISION: tl.constexpr):
    """``total + a @ b`` in float32."""
    if PRECISION == "wide":
        return tl.dot(a.to(tl.float32), b.to(tl.float32), total, input_precision="ieee")
    return tl.dot(a, b, total, input_precision=PRECISION)
