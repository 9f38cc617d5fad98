"""On the fly: a matrix product whose weight tiles are synthesised in registers, so that ``W`` is never in memory.

Costs ``1 + N·⌈M/BM⌉/M`` of the dense product and takes no workspace: for many templates, or few rows, where neither
order saves operations and a panel would be written and read for too little use.
"""

from __future__ import annotations

from dataclasses import dataclass

import triton
import triton.language as tl
from torch import Tensor

from weit_kernels.paths.pointwise import Grads
from weit_kernels.triton import panel
from weit_kernels.triton.pixels import conv_functions
from weit_kernels.triton.tiles import dot, narrow, power_of_two, precision


@dataclass(frozen=True)
class FlyTiles:
    """``rows`` of ``x`` × ``out`` features in steps of ``inn`` features.

    ``whole``: each step lies in one block. ``unrolled``: the sum over templates is, which lets Triton load ahead; a
    loop inside the loop over features keeps it from that.
    """

    rows: int
    out: int
    inn: int
    whole: bool
    unrolled: bool
    warps: int = 8
    stages: int = 2


def fly_tiles(M: int, p: int, q: int, N: int, itemsize: int) -> FlyTiles:
    """Tiles for ``M`` rows and ``N`` templates ``p × q``.

    Where a power of two from 32 divides ``p`` and one from 16 divides ``q``, a weight tile meets one scaler of each
    template; else each of its elements looks its scaler up. Whole 16-bit tiles of up to 8 templates are unrolled, with
    at most 64 KiB of ``T`` loaded ahead; the compiler spills hundreds of registers where float32 is.
    """
    rows = max(16, power_of_two(M, 128))
    out, inn = p & -p, q & -q
    whole = out >= 32 and inn >= 16
    unrolled = whole and itemsize == 2 and N <= 8
    out = min(out, 128 if unrolled else 64) if whole else 64
    inn = min(inn, 64 if unrolled and N * out <= 512 else 32) if whole else 32
    return FlyTiles(rows, out, inn, whole, unrolled)


def linear(x: Tensor, T: Tensor, S: Tensor, bias: Tensor | None, out: int) -> Tensor:
    """``x (M, in)`` → ``(M, out)``; ``T (N, p, q)`` and ``S (N, m, n)`` may have any strides."""
    (N, p, q), M, inn = T.shape, *x.shape
    y = x.new_empty(M, out)
    if M == 0:
        return y
    tiles = fly_tiles(M, p, q, N, x.element_size())
    present = bias is not None
    _kernel[(triton.cdiv(M, tiles.rows) * triton.cdiv(out, tiles.out),)](
        x, T, S, bias if present else y, y, M, N, p, q, inn, out, *T.stride(), *S.stride(),
        tiles.rows, tiles.out, tiles.inn, tiles.whole, N if tiles.unrolled else 0, present, precision(x),
        num_warps=tiles.warps, num_stages=tiles.stages,
    )  # fmt: skip
    return y


def linear_backward(dy: Tensor, x: Tensor, T: Tensor, S: Tensor, need: list[bool]) -> Grads:
    """Gradients of ``x``, by the same kernel, and of ``T`` and ``S``, by panels; ``None`` where not needed."""
    dx = linear(dy, T.mT, S.mT, None, x.shape[1]) if need[0] else None
    if not (need[1] or need[2]):
        return dx, None, None
    _, dT, dS = panel.linear_backward(dy, x, T, S, [False, *need[1:]])
    return dx, dT, dS


conv, conv_backward = conv_functions(linear, linear_backward)


@triton.jit
def _kernel(
    x, T, S, bias, y,
    M, N, p, q, in_features, out_features, T_t, T_a, T_k, S_t, S_i, S_j,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, WHOLE: tl.constexpr, UNROLLED: tl.constexpr,
    BIAS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """A program owns ``y[b, o]`` for ``BM`` rows and ``BN`` features ``o = (i, a)``, summed in float32 registers.

    For each step of ``BK`` features ``c = (j, k)``: ``W[c, o] = Σ_t S[t,i,j] · T[t,a,k]`` in float32 registers, rounded
    to the operands' dtype, then ``[b, c] × [c, o]``. A step reads ``BM·BK`` numbers of ``x`` and ``N·BK·BN`` of ``T``,
    from the L2 cache for the most part, and takes ``2·BK·BN·(BM + N)`` operations.
    """
    feature_blocks, program = tl.cdiv(out_features, BN), tl.program_id(0)
    o0 = (program % feature_blocks) * BN
    b, o = (program // feature_blocks).to(tl.int64) * BM + tl.arange(0, BM), o0 + tl.arange(0, BN)
    total = tl.zeros((BM, BN), tl.float32)
    for c0 in range(0, in_features, BK):
        c = c0 + tl.arange(0, BK)
        x_tile = tl.load(
            x + b[:, None] * in_features + c[None, :],
            mask=(b < M)[:, None] & (c < in_features)[None, :],
            other=0.0,
        )
        inside = (c < in_features)[:, None] & (o < out_features)[None, :]
        if WHOLE:
            S_at = S + (o0 // p).to(tl.int64) * S_i + (c0 // q).to(tl.int64) * S_j
            a, k = o0 % p + tl.arange(0, BN), c0 % q + tl.arange(0, BK)
        else:
            S_at = S + (o // p)[None, :].to(tl.int64) * S_i + (c // q)[:, None].to(tl.int64) * S_j
            a, k = o % p, c % q
        T_at = T + a[None, :].to(tl.int64) * T_a + k[:, None].to(tl.int64) * T_k
        W_tile = tl.zeros((BK, BN), tl.float32)
        if UNROLLED > 0:
            for _ in tl.static_range(UNROLLED):
                W_tile += _term(S_at, T_at, inside, WHOLE)
                S_at += S_t
                T_at += T_t
        else:
            for _ in range(N):
                W_tile += _term(S_at, T_at, inside, WHOLE)
                S_at += S_t
                T_at += T_t
        total = dot(x_tile, narrow(W_tile, x.dtype.element_ty, PRECISION), total, PRECISION)

    if BIAS:
        total += tl.load(bias + o, mask=o < out_features, other=0.0).to(tl.float32)[None, :]
    inside = (b < M)[:, None] & (o < out_features)[None, :]
    tl.store(y + b[:, None] * out_features + o[None, :], narrow(total, y.dtype.element_ty, PRECISION), mask=inside)


@triton.jit
def _term(S_at, T_at, inside, WHOLE: tl.constexpr):
    """``S[t,i,j] · T[t,a,k]`` of one template, in float32, zero outside."""
    scaler = tl.load(S_at) if WHOLE else tl.load(S_at, mask=inside, other=0.0)
    return scaler.to(tl.float32) * tl.load(T_at, mask=inside, other=0.0).to(tl.float32)
