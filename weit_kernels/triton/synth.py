"""A panel of ``W`` from its factors, and its gradient back to them: the twin of ``weit_kernels.paths.synth``.

``W`` has rows ``(i, a)`` and columns ``(j, k)``. Taken apart by pairs, with ``k`` counting a convolution's taps too,
it is one product with inner size ``N``: ``W[(i,j), (a,k)] = Σ_t S[t, (i,j)] · T[t, (a,k)]``. The kernels work on such
tiles and find each element's place in ``W``, so nothing is put in order before or after.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from weit_kernels.paths.blocks import blocks, workspace
from weit_kernels.paths.synth import Pair
from weit_kernels.triton.sums import sum_parts
from weit_kernels.triton.tiles import dot, narrow, power_of_two, precision, programs


@dataclass(frozen=True)
class SynthTiles:
    """Sizes of one tile, powers of two from 16: ``rows`` pairs ``(i,j)``, ``cols`` pairs ``(a,k)``, ``t`` templates."""

    rows: int
    cols: int
    t: int
    warps: int = 4
    stages: int = 2


def weight_tiles(rows: int, cols: int, N: int, layout: str) -> SynthTiles:
    """Tiles for ``weight``: ``rows = m·n`` pairs, ``cols = p·q·taps`` pairs; the sum takes 64 registers a thread.

    Half of that in the interleaved layout, where each element's place takes more registers.
    """
    most = (64, 128, 16) if layout == "block" else (64, 64, 16)
    return SynthTiles(*(max(16, power_of_two(size, m)) for size, m in zip((rows, cols, N), most, strict=True)))


def gradient_tiles(rows: int, cols: int, N: int) -> SynthTiles:
    """Tiles for ``add_gradients``; sizes as in ``weight_tiles``."""
    return SynthTiles(*(max(16, power_of_two(size, most)) for size, most in ((rows, 32), (cols, 128), (N, 16))))


def weight(T: Tensor, S: Tensor, out: int, inn: int, layout: str, scratch_bytes: int) -> Tensor:
    """``W = Σ_t S_t ⊗ T_t``, cut to ``out`` rows and ``inn`` columns, in workspace memory.

    ``T (N, p, q, *kernel)``, ``S (N, m, n)``, any strides → contiguous ``(out, inn, *kernel)``. One launch, no scratch.
    """
    panel = workspace("panel", T, out, inn, *T.shape[3:])
    flat, sizes = _sizes(T, S, panel, layout)
    pairs, cols = S.shape[1] * S.shape[2], flat[0].numel()
    tiles = weight_tiles(pairs, cols, T.shape[0], layout)
    _weight[(triton.cdiv(pairs, tiles.rows) * triton.cdiv(cols, tiles.cols),)](
        flat, S, panel, *sizes, tiles.rows, tiles.cols, tiles.t, precision(T),
        num_warps=tiles.warps, num_stages=tiles.stages,
    )  # fmt: skip
    return panel


def gradients(dweight: Tensor, T: Tensor, S: Tensor, need: list[bool], layout: str, scratch_bytes: int) -> Pair:
    """``dT`` and ``dS`` of ``dweight (out, in, *kernel)``, contiguous, of the factors' dtypes; ``None`` where not needed.

    As ``add_gradients``, in two launches where ``scratch_bytes`` hold all partial sums.
    """
    parts = _Parts(dweight, T, S, need[1], layout, scratch_bytes)
    precise = T.dtype if len(parts.chunks) == 1 else torch.float32
    dT = T.new_empty(T.shape, dtype=precise) if need[0] else None
    dS = S.new_empty(S.shape) if need[1] else None
    for index, chunk in enumerate(parts.chunks):  # each has scaler pairs of its own, and adds to all of dT
        parts.add(chunk, dT, dS, index > 0, False)
    return None if dT is None else dT.to(T.dtype), dS


def add_gradients(
    dweight: Tensor, T: Tensor, S: Tensor, dT: Tensor | None, dS: Tensor | None, layout: str, scratch_bytes: int
) -> None:
    """Add to ``dT`` and ``dS``, float32, where present, what ``dweight (out, in, *kernel)`` contributes.

    ``T (N, p, q, *kernel)`` and ``S (N, m, n)``, any strides, are the factors of this panel. ``dweight`` is read once;
    partial sums, at most ``scratch_bytes`` unless a single one is larger, are added in a fixed order.
    """
    parts = _Parts(dweight, T, S, dS is not None, layout, scratch_bytes)
    for chunk in parts.chunks:
        parts.add(chunk, dT, dS, True, True)


class _Parts:
    """Both gradients of one panel as partial sums, for some scaler pairs ``(i,j)`` at a time.

    Attributes:
        chunks: of the pairs; so many that partial sums of ``dS`` take half of the scratch memory.
    """

    def __init__(self, dweight: Tensor, T: Tensor, S: Tensor, want_S: bool, layout: str, scratch_bytes: int) -> None:
        self.S, self.dweight, self.half = S, dweight.contiguous(), scratch_bytes // 2
        self.flat, self.sizes = _sizes(T, S, self.dweight, layout)
        self.N, self.pairs, self.cols = T.shape[0], S.shape[1] * S.shape[2], self.flat[0].numel()
        self.tiles = gradient_tiles(self.pairs, self.cols, self.N)
        self.col_blocks = triton.cdiv(self.cols, self.tiles.cols)
        self.chunks = list(blocks(self.pairs, 4 * self.N * self.col_blocks if want_S else 0, self.half))

    def add(self, chunk: slice, dT: Tensor | None, dS: Tensor | None, adds_T: bool, adds_S: bool) -> None:
        """Write what a chunk contributes to ``dT`` and to its pairs of ``dS``, or add it to what is there."""
        want_T, want_S = dT is not None, dS is not None
        N, cols, tiles, count = self.N, self.cols, self.tiles, chunk.stop - chunk.start
        owners = self.col_blocks * triton.cdiv(N, tiles.t)
        # Four programs of four warps fill a multiprocessor: not measured.
        splits = max(1, min(4 * programs(self.flat) // owners, triton.cdiv(count, tiles.rows)))
        if want_T:
            splits = max(1, min(splits, self.half // (4 * N * cols)))

        def partial(needed: bool, *shape: int) -> Tensor:
            return self.flat.new_empty(shape, dtype=torch.float32) if needed else self.dweight

        dT_parts, dS_parts = partial(want_T, splits, N, cols), partial(want_S, self.col_blocks, N, count)
        _gradients[(owners * splits,)](
            self.flat, self.S, self.dweight, dT_parts, dS_parts, chunk.start, chunk.stop, splits, *self.sizes,
            tiles.rows, tiles.cols, tiles.t, want_T, want_S, precision(self.flat),
            num_warps=tiles.warps, num_stages=tiles.stages,
        )  # fmt: skip
        dS_chunk = None if dS is None else dS.view(N, self.pairs)[:, chunk]
        sum_parts((dT_parts, dT, adds_T), (dS_parts, dS_chunk, adds_S))


def _sizes(T: Tensor, S: Tensor, weight: Tensor, layout: str) -> tuple[Tensor, tuple[Any, ...]]:
    """``T`` as ``(N, p, q·taps)``, and what both kernels take after their pointers; a row of ``W`` is one axis too."""
    flat = T.flatten(2)  # copied only where a kernel's axes have strides that no single axis has
    (N, p, q), (_, m, n) = flat.shape, S.shape
    taps, interleaved = q // T.shape[2], layout == "interleaved"
    return flat, (N, m, n, p, q, weight.shape[0], weight[0].numel(), *flat.stride(), *S.stride(), taps, interleaved)


@triton.jit
def _weight(
    T, S, W,
    N, m, n, p, q, rows, row, T_t, T_a, T_k, S_t, S_i, S_j, TAPS: tl.constexpr, INTERLEAVED: tl.constexpr,
    BR: tl.constexpr, BC: tl.constexpr, BT: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """A program owns the tile ``BR`` pairs ``(i,j)`` × ``BC`` pairs ``(a,k)``: ``[(i,j), t] × [t, (a,k)]``.

    Reads ``(BR + BC)·N`` numbers and writes ``BR·BC`` of ``W``, in runs of up to ``q`` (block) or ``TAPS`` numbers.
    """
    col_blocks = tl.cdiv(p * q, BC)
    ij = (tl.program_id(0) // col_blocks) * BR + tl.arange(0, BR)
    ak = (tl.program_id(0) % col_blocks) * BC + tl.arange(0, BC)
    total = tl.zeros((BR, BC), tl.float32)
    for t0 in range(0, N, BT):
        t = t0 + tl.arange(0, BT)
        S_tile = _scalers(S, t[None, :], ij[:, None], N, m * n, n, S_t, S_i, S_j)
        T_tile = _templates(T, t[:, None], ak[None, :], N, p, q, T_t, T_a, T_k)
        total = dot(S_tile, T_tile, total, PRECISION)
    offset, inside = _place(ij[:, None], ak[None, :], m * n, m, n, p, q, rows, row, TAPS, INTERLEAVED)
    tl.store(W + offset, narrow(total, W.dtype.element_ty, PRECISION), mask=inside)


@triton.jit
def _gradients(
    T, S, dW, dT, dS, first, last, splits,
    N, m, n, p, q, rows, row, T_t, T_a, T_k, S_t, S_i, S_j, TAPS: tl.constexpr, INTERLEAVED: tl.constexpr,
    BR: tl.constexpr, BC: tl.constexpr, BT: tl.constexpr,
    WANT_T: tl.constexpr, WANT_S: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """A program owns ``BT`` templates × ``BC`` pairs ``(a,k)``, and every ``splits``-th tile of ``BR`` pairs ``(i,j)``.

    Each tile of ``dW``, read once, serves ``dT[t, (a,k)] += [t, (i,j)] × [(i,j), (a,k)]``, in float32 registers for
    the whole loop, and ``dS[t, (i,j)] = [t, (a,k)] × [(a,k), (i,j)]``, which leaves at once as one partial sum for
    each block of columns. Pairs ``(i,j)`` run from ``first`` to ``last``.
    """
    col_blocks, program = tl.cdiv(p * q, BC), tl.program_id(0)
    col_block, rest = program % col_blocks, program // col_blocks
    split, t0 = rest % splits, (rest // splits) * BT
    t, ak = t0 + tl.arange(0, BT), col_block * BC + tl.arange(0, BC)
    if WANT_T:
        dT_tile = tl.zeros((BT, BC), tl.float32)
    if WANT_S:
        T_tile = _templates(T, t[:, None], ak[None, :], N, p, q, T_t, T_a, T_k)
    for tile in range(split, tl.cdiv(last - first, BR), splits):
        ij = first + tile * BR + tl.arange(0, BR)
        offset, inside = _place(ij[:, None], ak[None, :], last, m, n, p, q, rows, row, TAPS, INTERLEAVED)
        dW_tile = tl.load(dW + offset, mask=inside, other=0.0)
        if WANT_T:
            S_tile = _scalers(S, t[:, None], ij[None, :], N, last, n, S_t, S_i, S_j)
            dT_tile = dot(S_tile, dW_tile, dT_tile, PRECISION)
        if WANT_S:
            dS_tile = dot(T_tile, tl.trans(dW_tile), tl.zeros((BT, BR), tl.float32), PRECISION)
            at = (col_block.to(tl.int64) * N + t[:, None]) * (last - first) + (ij - first)[None, :]
            tl.store(dS + at, dS_tile, mask=(t < N)[:, None] & (ij < last)[None, :])
    if WANT_T:
        at = (split.to(tl.int64) * N + t[:, None]) * (p * q) + ak[None, :]
        tl.store(dT + at, dT_tile, mask=(t < N)[:, None] & (ak < p * q)[None, :])


@triton.jit
def _scalers(S, t, ij, N, last, n, S_t, S_i, S_j):
    """``S[t, i, j]`` for indices that broadcast against each other, zero outside."""
    at = t.to(tl.int64) * S_t + (ij // n).to(tl.int64) * S_i + (ij % n).to(tl.int64) * S_j
    return tl.load(S + at, mask=(t < N) & (ij < last), other=0.0)


@triton.jit
def _templates(T, t, ak, N, p, q, T_t, T_a, T_k):
    """``T[t, a, k]`` likewise."""
    at = t.to(tl.int64) * T_t + (ak // q).to(tl.int64) * T_a + (ak % q).to(tl.int64) * T_k
    return tl.load(T + at, mask=(t < N) & (ak < p * q), other=0.0)


@triton.jit
def _place(ij, ak, last, m, n, p, q, rows, row, TAPS: tl.constexpr, INTERLEAVED: tl.constexpr):
    """Where the elements of a tile lie in ``W`` with ``rows`` rows of ``row`` numbers, and which of them exist."""
    i, j, a, k = ij // n, ij % n, ak // q, ak % q
    if INTERLEAVED:
        at_row, at_col = a * m + i, ((k // TAPS) * n + j) * TAPS + k % TAPS
    else:
        at_row, at_col = i * p + a, j * q + k
    inside = (ij < last) & (ak < p * q) & (at_row < rows) & (at_col < row)
    return at_row.to(tl.int64) * row + at_col, inside
