"""Tile sizes, launch options and what the kernels share."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from weit_kernels import tune


@dataclass(frozen=True)
class Tiles:
    """Sizes of one program of a forward kernel, all powers of two, and its launch options.

    Named for ``templates_first``, which contracts ``k`` first and regroups; ``scalers_first`` exchanges ``k`` with
    ``j`` and ``a`` with ``i``. A product's sides are 16 at the least, so small operands are padded with masked zeros.
    """

    tokens: int
    j: int
    k: int
    t: int
    a: int
    i: int
    warps: int = 8
    stages: int = 3


@dataclass(frozen=True)
class GradTiles:
    """Sizes of one program of ``weight_grads``: ``k`` columns of ``dT``, ``i`` rows of ``dS``, ``depth`` inside ``Z``."""

    tokens: int
    j: int
    k: int
    t: int
    a: int
    i: int
    depth: int
    warps: int = 8
    stages: int = 2


def power_of_two(value: int, most: int) -> int:
    """The smallest power of two that holds ``value``, but no more than ``most``."""
    return min(most, 1 << max(0, value - 1).bit_length())


def forward_tiles(n: int, q: int, p: int, m: int, N: int, itemsize: int) -> Tiles:
    """Tiles of 128 × 128 for the first product of many tokens, 64 × 64 for float32, whose operands take registers.

    ``n`` is what the kernel regroups, ``q`` what it contracts first, ``p`` and ``m`` what it keeps first and last:
    ``scalers_first`` passes ``q, n, m, p``.
    """
    side = 128 if itemsize < 4 else 64
    t = power_of_two(N, 8)
    a = max(power_of_two(p, side // t), 16 // t)
    j = max(power_of_two(n, min(16, 2 * a)), 16 // t)  # `tokens · a` rows in the second product: wgmma takes 64
    tokens = side // j
    a = max(a, 16 // tokens)
    i = max(16, power_of_two(m, max(16, side * side // (tokens * a))))
    return Tiles(tokens, j, max(16, power_of_two(q, 128 // itemsize)), t, a, i)


def grad_tiles(n: int, q: int, p: int, m: int, N: int, itemsize: int, most: int = 16384) -> GradTiles:
    """Tiles whose sum ``[(t,a), k]`` has ``most`` numbers, and ``[(j,t), i]`` half as many: 64 and 32 registers.

    With all of ``q`` in one tile ``V`` is computed once; then ``dT`` and ``dS`` share a pass. Operands of float32
    products take registers too, so there the sums are an eighth and the tiles of tokens half as large.
    """
    side = 128
    if itemsize == 4:
        most, side = min(most, 2048), 64
    t = power_of_two(N, 8)
    j = max(power_of_two(n, 32), 16 // t)
    k = max(16, power_of_two(q, most // 64))
    a = max(power_of_two(p, max(1, min(64 // t, most // (k * t)))), 16 // t)
    tokens = max(16 // j, 16 // a, side // j, 1)
    i = max(16, power_of_two(m, max(16, most // 2 // (j * t))))
    return GradTiles(tokens, j, k, t, a, i, max(16, power_of_two(q, 128 // itemsize)))


@cache
def _processors(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count


def programs(x: Tensor) -> int:
    """How many programs fill the machine; a few in the interpreter, so that partial sums are exercised."""
    return _processors(x.device) if x.is_cuda else 32


@cache
def _capability(device: torch.device) -> tuple[int, int]:
    return torch.cuda.get_device_capability(device)


def largest_sum(x: Tensor) -> int:
    """``most`` for ``grad_tiles``: but on sm_90 and sm_100 operands take registers too, and a larger sum would spill."""
    return 16384 if not x.is_cuda or _capability(x.device)[0] in (9, 10) else 4096


def launch(
    kernel: Any, tiles: Tiles, a_tile: int, i_tile: int, x: Tensor, T: Tensor, S: Tensor, bias: Tensor | None, out: int
) -> Tensor:
    """Run either forward kernel: ``x (M, in)``, ``T (N, p, q)`` and ``S (N, m, n)`` of any strides → ``(M, out)``."""
    (N, p, q), (_, m, n), M = T.shape, S.shape, x.shape[0]
    y = x.new_empty(M, out)
    if M == 0:
        return y
    grid = (triton.cdiv(M, tiles.tokens) * triton.cdiv(p, a_tile) * triton.cdiv(m, i_tile),)
    sizes = (M, N, m, n, p, q, x.shape[1], out, *T.stride(), *S.stride())
    blocks = (tiles.tokens, tiles.j, tiles.k, tiles.t, tiles.a, tiles.i)
    present = bias is not None
    kernel[grid](
        x, T, S, bias if present else y, y, *sizes, *blocks, present, precision(x),
        num_warps=tiles.warps, num_stages=tiles.stages,
    )  # fmt: skip
    return y


def precision(x: Tensor) -> str:
    """How ``dot`` multiplies: tf32 only where torch allows it for float32."""
    if not x.is_cuda:
        # Triton's interpreter would multiply the bit patterns of bfloat16; its products are exact in float32.
        return "wide" if x.dtype == torch.bfloat16 else "ieee"
    return "tf32" if tune.allows_tf32() else "ieee"


@triton.jit
def place(M, p, m, BM: tl.constexpr, BA: tl.constexpr, BI: tl.constexpr):
    """First token (64-bit), template row and scaler row of a program.

    Neighbours share their tokens, so ``x`` comes from memory once and from the L2 cache for the other blocks.
    """
    a_blocks, i_blocks, program = tl.cdiv(p, BA), tl.cdiv(m, BI), tl.program_id(0)
    rest = program // a_blocks
    return (rest // i_blocks).to(tl.int64) * BM, (program % a_blocks) * BA, (rest % i_blocks) * BI


@triton.jit
def load_rows(x, b, major, minor, M, majors, minors, features):
    """``x[b, (major, minor)]`` of ``(M, features)``, zero outside, for indices that broadcast against each other."""
    feature = major * minors + minor
    inside = (b < M) & (major < majors) & (minor < minors) & (feature < features)
    return tl.load(x + b * features + feature, mask=inside, other=0.0)


@triton.jit
def load_factor(F, t, row, col, N, rows, cols, F_t, F_row, F_col):
    """``F[t, row, col]`` of ``T`` or ``S`` with any strides, zero outside, likewise."""
    at = t.to(tl.int64) * F_t + row.to(tl.int64) * F_row + col.to(tl.int64) * F_col
    return tl.load(F + at, mask=(t < N) & (row < rows) & (col < cols), other=0.0)


@triton.jit
def dot(a, b, total, PRECISION: tl.constexpr):
    """``total + a @ b`` in float32."""
    if PRECISION == "wide":
        return tl.dot(a.to(tl.float32), b.to(tl.float32), total, input_precision="ieee")
    return tl.dot(a, b, total, input_precision=PRECISION)


@triton.jit
def narrow(value, dtype: tl.constexpr, PRECISION: tl.constexpr):
    """Round float32 to an operand's dtype, to nearest even; the interpreter would cut bfloat16 off."""
    if PRECISION == "wide":
        bits = value.to(tl.uint32, bitcast=True)
        bits = (bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000
        return bits.to(tl.float32, bitcast=True).to(dtype)
    return value.to(dtype)
