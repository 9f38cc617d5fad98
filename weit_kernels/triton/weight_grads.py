"""``dT`` and ``dS`` in one pass over the tokens; the intermediates ``V`` and ``Z`` stay on chip.

    dT[t,a,k] = Σ_{b,j} V[b,j,t,a] · x[b,j,k],    V = Σ_i S · dy
    dS[t,i,j] = Σ_{b,a} Z[b,j,t,a] · dy[b,i,a],   Z = Σ_k T · x

This is the cheap order for ``m > n``. For ``n > m`` the same kernel runs with ``x`` and ``dy`` exchanged and both
factors transposed, since ``Σ S·T·dy·x`` does not care which side is called the input.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from weit_kernels.paths.blocks import GPU_BLOCK_BYTES
from weit_kernels.paths.synth import Pair
from weit_kernels.triton.sums import sum_parts
from weit_kernels.triton.tiles import (
    GradTiles,
    dot,
    grad_tiles,
    largest_sum,
    load_factor,
    load_rows,
    narrow,
    precision,
    programs,
)
from weit_kernels.triton.tuning import tuned


def weight_grads(dy: Tensor, x: Tensor, T: Tensor, S: Tensor, need: list[bool]) -> Pair:
    """``dy (M, out)``, ``x (M, in)`` → ``dT (N, p, q)`` and ``dS (N, m, n)``; ``None`` where not needed.

    ``T`` and ``S`` may have any strides. One launch, or one for each gradient where ``q`` or ``m`` exceeds a tile;
    the programs' partial sums are then added in a fixed order, so the result is deterministic.
    """
    want_T, want_S = need
    if not any(need):
        return None, None
    if x.shape[0] == 0:
        return T.new_zeros(T.shape) if want_T else None, S.new_zeros(S.shape) if want_S else None
    (N, p, q), (_, m, n) = T.shape, S.shape

    def run(tiles: GradTiles) -> Pair:
        if want_T and want_S and (q > tiles.k or m > tiles.i):
            return _launch(tiles, dy, x, T, S, True, False)[0], _launch(tiles, dy, x, T, S, False, True)[1]
        return _launch(tiles, dy, x, T, S, want_T, want_S)

    guess = grad_tiles(n, q, p, m, N, x.element_size(), largest_sum(x))
    return run(tuned("weight_grads", guess, x, (N, m, n, p, q, want_T, want_S), run))


def _launch(tiles: GradTiles, dy: Tensor, x: Tensor, T: Tensor, S: Tensor, want_T: bool, want_S: bool) -> Pair:
    (N, p, q), (_, m, n), M = T.shape, S.shape, x.shape[0]
    a_blocks, j_blocks, t_blocks = triton.cdiv(p, tiles.a), triton.cdiv(n, tiles.j), triton.cdiv(N, tiles.t)
    blocks = a_blocks * j_blocks * t_blocks * (triton.cdiv(q, tiles.k) if want_T else triton.cdiv(m, tiles.i))
    held = 4 * N * ((j_blocks * p * q if want_T else 0) + (a_blocks * m * n if want_S else 0))
    # Float32 is added in chains, one for each number of a program's; those of a dense layer are as long as the tokens are
    # many. So are ours where there are as many splits as a token gives a program terms; large factors leave no room for it.
    terms = max(tiles.j if want_T else 1, tiles.a if want_S else 1) if x.dtype == torch.float32 else 1
    splits = max(1, min(max(programs(x) // blocks, terms), GPU_BLOCK_BYTES // held, triton.cdiv(M, tiles.tokens)))

    def partial(*shape: int) -> Tensor:
        return x.new_empty(shape, dtype=torch.float32)

    dT_parts = partial(splits * j_blocks, N, p, q) if want_T else None
    dS_parts = partial(splits * a_blocks, N, m, n) if want_S else None
    _kernel[(blocks * splits,)](
        dy, x, T, S, x if dT_parts is None else dT_parts, x if dS_parts is None else dS_parts,
        M, N, m, n, p, q, x.shape[1], dy.shape[1], splits, *T.stride(), *S.stride(),
        tiles.tokens, tiles.j, tiles.k, tiles.t, tiles.a, tiles.i, tiles.depth, want_T, want_S, precision(x),
        num_warps=tiles.warps, num_stages=tiles.stages,
    )  # fmt: skip
    dT = None if dT_parts is None else T.new_empty(T.shape)
    dS = None if dS_parts is None else S.new_empty(S.shape)
    sum_parts((dT_parts, dT, False), (dS_parts, dS, False))
    return dT, dS


@triton.jit
def _kernel(
    dy, x, T, S, dT, dS,
    M, N, m, n, p, q, in_features, out_features, splits, T_t, T_a, T_k, S_t, S_i, S_j,
    BM: tl.constexpr, BJ: tl.constexpr, BK: tl.constexpr, BT: tl.constexpr, BA: tl.constexpr, BI: tl.constexpr,
    DEPTH: tl.constexpr, WANT_T: tl.constexpr, WANT_S: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """A program owns ``BT`` templates × ``BA`` template rows × ``BJ`` scaler columns, and every ``splits``-th token tile.

    It sums ``dT[(t,a), k]`` over its ``BJ`` columns and tokens, for one block of ``BK`` template columns, and
    ``dS[(j,t), i]`` over its ``BA`` rows and tokens, for one block of ``BI`` scaler rows; both in float32 registers for
    the whole loop. For each tile of ``BM`` tokens: ``V = [(b,a), i] × [i, (j,t)]`` over all ``i``, regrouped to
    ``[(t,a), (b,j)]``, times ``x`` as ``[(b,j), k]``; ``Z = [(b,j), k] × [k, (t,a)]`` over all ``k``, regrouped to
    ``[(j,t), (b,a)]``, times ``dy`` as ``[(b,a), i]``. With both wanted there is one block of ``k`` and one of ``i``.
    """
    block = tl.program_id(0)
    a_blocks, j_blocks, t_blocks = tl.cdiv(p, BA), tl.cdiv(n, BJ), tl.cdiv(N, BT)
    blocks = a_blocks * j_blocks * t_blocks * (tl.cdiv(q, BK) if WANT_T else tl.cdiv(m, BI))
    split = block // blocks  # neighbours share a token tile, and so what the L2 cache holds
    block = block % blocks
    a_block, block = block % a_blocks, block // a_blocks
    j_block, block = block % j_blocks, block // j_blocks
    t0, last = (block % t_blocks) * BT, block // t_blocks
    a0, j0, k0, i0 = a_block * BA, j_block * BJ, last * BK, last * BI

    bj, ba = tl.arange(0, BM * BJ), tl.arange(0, BM * BA)
    ta, jt = tl.arange(0, BT * BA), tl.arange(0, BJ * BT)
    j, a = j0 + bj % BJ, a0 + ba % BA
    ta_t, ta_a = t0 + ta // BA, a0 + ta % BA
    jt_j, jt_t = j0 + jt // BT, t0 + jt % BT
    k, i = k0 + tl.arange(0, BK), i0 + tl.arange(0, BI)

    if WANT_T:
        dT_tile = tl.zeros((BT * BA, BK), tl.float32)
    if WANT_S:
        dS_tile = tl.zeros((BJ * BT, BI), tl.float32)
    for tile in range(split, tl.cdiv(M, BM), splits):
        b_x = (bj // BJ).to(tl.int64) + tile * BM
        b_y = (ba // BA).to(tl.int64) + tile * BM
        if WANT_T:
            V = tl.zeros((BM * BA, BJ * BT), tl.float32)
            for i_from in range(0, m, BI):
                i_in = i_from + tl.arange(0, BI)
                dy_chunk = load_rows(dy, b_y[:, None], i_in[None, :], a[:, None], M, m, p, out_features)
                S_tile = load_factor(S, jt_t[None, :], i_in[:, None], jt_j[None, :], N, m, n, S_t, S_i, S_j)
                V = dot(dy_chunk, S_tile, V, PRECISION)
            V = tl.reshape(tl.permute(tl.reshape(V, (BM, BA, BJ, BT)), (3, 1, 0, 2)), (BT * BA, BM * BJ))
            x_tile = load_rows(x, b_x[:, None], j[:, None], k[None, :], M, n, q, in_features)
            dT_tile = dot(narrow(V, x.dtype.element_ty, PRECISION), x_tile, dT_tile, PRECISION)
        if WANT_S:
            Z = tl.zeros((BM * BJ, BT * BA), tl.float32)
            for k_from in range(0, q, DEPTH):
                k_in = k_from + tl.arange(0, DEPTH)
                x_chunk = load_rows(x, b_x[:, None], j[:, None], k_in[None, :], M, n, q, in_features)
                T_tile = load_factor(T, ta_t[None, :], ta_a[None, :], k_in[:, None], N, p, q, T_t, T_a, T_k)
                Z = dot(x_chunk, T_tile, Z, PRECISION)
            Z = tl.reshape(tl.permute(tl.reshape(Z, (BM, BJ, BT, BA)), (1, 2, 0, 3)), (BJ * BT, BM * BA))
            dy_tile = load_rows(dy, b_y[:, None], i[None, :], a[:, None], M, m, p, out_features)
            dS_tile = dot(narrow(Z, dy.dtype.element_ty, PRECISION), dy_tile, dS_tile, PRECISION)

    if WANT_T:
        row = ((split * j_blocks + j_block).to(tl.int64) * N + ta_t) * p + ta_a
        tl.store(
            dT + row[:, None] * q + k[None, :],
            dT_tile,
            mask=(ta_t < N)[:, None] & (ta_a < p)[:, None] & (k < q)[None, :],
        )
    if WANT_S:
        grid = (split * a_blocks + a_block).to(tl.int64) * N + jt_t
        tl.store(
            dS + (grid[:, None] * m + i[None, :]) * n + jt_j[:, None],
            dS_tile,
            mask=(jt_t < N)[:, None] & (jt_j < n)[:, None] & (i < m)[None, :],
        )
