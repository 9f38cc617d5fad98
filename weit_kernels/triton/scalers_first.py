"""Scalers first in one kernel: ``U[b,i,t,k] = Σ_j S·x`` stays on chip, only ``y[b,i,a] = Σ_{t,k} U·T`` leaves."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from weit_kernels.paths.blocks import in_order
from weit_kernels.paths.pointwise import Grads
from weit_kernels.triton.few_rows import tiles_for
from weit_kernels.triton.pixels import conv_functions
from weit_kernels.triton.tiles import Tiles, dot, launch, load_factor, load_rows, narrow, place
from weit_kernels.triton.tuning import tuned
from weit_kernels.triton.weight_grads import weight_grads


def linear(x: Tensor, T: Tensor, S: Tensor, bias: Tensor | None, out: int) -> Tensor:
    """``x (M, in)`` → ``(M, out)``; ``T (N, p, q)`` and ``S (N, m, n)`` may have any strides."""
    (N, p, q), (_, m, n) = T.shape, S.shape

    def run(tiles: Tiles) -> list[Tensor]:
        return [launch(_kernel, tiles, tiles.i, tiles.a, x, T, S, bias, out)]

    return run(tuned("scalers_first", tiles_for(x, q, n, m, p, N), x, (N, m, n, p, q), run))[0]


def linear_backward(dy: Tensor, x: Tensor, T: Tensor, S: Tensor, need: list[bool]) -> Grads:
    """Gradients of ``x``, by the adjoint kernel, and of ``T`` and ``S``; ``None`` where not needed."""
    from weit_kernels.triton import templates_first

    dx = templates_first.linear(dy, T.mT, S.mT, None, x.shape[1]) if need[0] else None
    dT, dS = weight_grads(x, dy, T.mT, S.mT, need[1:])  # the input and the output change roles
    return dx, None if dT is None else in_order(dT.mT, T.dtype), None if dS is None else in_order(dS.mT, S.dtype)


conv, conv_backward = conv_functions(linear, linear_backward)


@triton.jit
def _kernel(
    x, T, S, bias, y,
    M, N, m, n, p, q, in_features, out_features, T_t, T_a, T_k, S_t, S_i, S_j,
    BM: tl.constexpr, BK: tl.constexpr, BJ: tl.constexpr, BT: tl.constexpr, BI: tl.constexpr, BA: tl.constexpr,
    BIAS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """A program owns ``y[b, i, a]`` for ``BM`` tokens, ``BI`` scaler rows and ``BA`` template rows.

    For each chunk of ``BK`` template columns and ``BT`` templates: ``[(b,k), j] × [j, (i,t)]`` over all ``j`` in
    float32 registers, regrouped to ``[(b,i), (t,k)]`` and rounded to the operands' dtype, times ``T`` as
    ``[(t,k), a]``, summed in float32 registers. Reads ``x`` once for each block of ``a`` and of ``i``; writes ``y``
    once.
    """
    token, a0, i0 = place(M, p, m, BM, BA, BI)
    rows, cols, inner = tl.arange(0, BM * BK), tl.arange(0, BI * BT), tl.arange(0, BT * BK)
    row_b, row_k = token + rows // BK, rows % BK
    col_i, col_t = i0 + cols // BT, cols % BT
    inner_t, inner_k = inner // BK, inner % BK
    js, a = tl.arange(0, BJ), a0 + tl.arange(0, BA)

    out = tl.zeros((BM * BI, BA), tl.float32)
    for k0 in range(0, q, BK):
        k = k0 + row_k
        for t0 in range(0, N, BT):
            u = tl.zeros((BM * BK, BI * BT), tl.float32)
            for j0 in range(0, n, BJ):
                j, t = j0 + js, t0 + col_t
                x_tile = load_rows(x, row_b[:, None], j[None, :], k[:, None], M, n, q, in_features)
                S_tile = load_factor(S, t[None, :], col_i[None, :], j[:, None], N, m, n, S_t, S_i, S_j)
                u = dot(x_tile, S_tile, u, PRECISION)
            u = tl.reshape(tl.permute(tl.reshape(u, (BM, BK, BI, BT)), (0, 2, 3, 1)), (BM * BI, BT * BK))
            t, k_in = t0 + inner_t, k0 + inner_k
            T_tile = load_factor(T, t[:, None], a[None, :], k_in[:, None], N, p, q, T_t, T_a, T_k)
            out = dot(narrow(u, T.dtype.element_ty, PRECISION), T_tile, out, PRECISION)

    out_rows = tl.arange(0, BM * BI)
    b, i = token + out_rows // BI, i0 + out_rows % BI
    feature = i[:, None] * p + a[None, :]
    inside = (b < M)[:, None] & (i < m)[:, None] & (a < p)[None, :] & (feature < out_features)
    if BIAS:
        out += tl.load(bias + feature, mask=inside, other=0.0).to(tl.float32)
    tl.store(y + b[:, None] * out_features + feature, narrow(out, y.dtype.element_ty, PRECISION), mask=inside)
