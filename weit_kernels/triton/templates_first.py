"""Templates first in one kernel: ``Z[b,j,t,a] = Σ_k x·T`` stays on chip, only ``y[b,i,a] = Σ_{j,t} S·Z`` leaves."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

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
        return [launch(_kernel, tiles, tiles.a, tiles.i, x, T, S, bias, out)]

    return run(tuned("templates_first", tiles_for(x, n, q, p, m, N), x, (N, m, n, p, q), run))[0]


def linear_backward(dy: Tensor, x: Tensor, T: Tensor, S: Tensor, need: list[bool]) -> Grads:
    """Gradients of ``x``, by the adjoint kernel, and of ``T`` and ``S``; ``None`` where not needed."""
    from weit_kernels.triton import scalers_first

    dx = scalers_first.linear(dy, T.mT, S.mT, None, x.shape[1]) if need[0] else None
    return dx, *weight_grads(dy, x, T, S, need[1:])


conv, conv_backward = conv_functions(linear, linear_backward)


@triton.jit
def _kernel(
    x, T, S, bias, y,
    M, N, m, n, p, q, in_features, out_features, T_t, T_a, T_k, S_t, S_i, S_j,
    BM: tl.constexpr, BJ: tl.constexpr, BK: tl.constexpr, BT: tl.constexpr, BA: tl.constexpr, BI: tl.constexpr,
    BIAS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """A program owns ``y[b, i, a]`` for ``BM`` tokens, ``BI`` scaler rows and ``BA`` template rows.

    For each chunk of ``BJ`` scaler columns and ``BT`` templates: ``[(b,j), k] × [k, (t,a)]`` over all ``k`` in float32
    registers, regrouped to ``[(b,a), (j,t)]`` and rounded to the operands' dtype, times ``S`` as ``[(j,t), i]``, summed
    in float32 registers. Reads ``x`` once for each block of ``a`` and of ``i``; writes ``y`` once.
    """
    token, a0, i0 = place(M, p, m, BM, BA, BI)
    rows, cols, inner = tl.arange(0, BM * BJ), tl.arange(0, BT * BA), tl.arange(0, BJ * BT)
    row_b, row_j = token + rows // BJ, rows % BJ
    col_t, col_a = cols // BA, a0 + cols % BA
    inner_j, inner_t = inner // BT, inner % BT
    ks, i = tl.arange(0, BK), i0 + tl.arange(0, BI)

    out = tl.zeros((BM * BA, BI), tl.float32)
    for j0 in range(0, n, BJ):
        j = j0 + row_j
        for t0 in range(0, N, BT):
            z = tl.zeros((BM * BJ, BT * BA), tl.float32)
            for k0 in range(0, q, BK):
                k, t = k0 + ks, t0 + col_t
                x_tile = load_rows(x, row_b[:, None], j[:, None], k[None, :], M, n, q, in_features)
                T_tile = load_factor(T, t[None, :], col_a[None, :], k[:, None], N, p, q, T_t, T_a, T_k)
                z = dot(x_tile, T_tile, z, PRECISION)
            z = tl.reshape(tl.permute(tl.reshape(z, (BM, BJ, BT, BA)), (0, 3, 1, 2)), (BM * BA, BJ * BT))
            t, j_in = t0 + inner_t, j0 + inner_j
            S_tile = load_factor(S, t[:, None], i[None, :], j_in[:, None], N, m, n, S_t, S_i, S_j)
            out = dot(narrow(z, S.dtype.element_ty, PRECISION), S_tile, out, PRECISION)

    out_rows = tl.arange(0, BM * BA)
    b, a = token + out_rows // BA, a0 + out_rows % BA
    feature = i[None, :] * p + a[:, None]
    inside = (b < M)[:, None] & (a < p)[:, None] & (i < m)[None, :] & (feature < out_features)
    if BIAS:
        out += tl.load(bias + feature, mask=inside, other=0.0).to(tl.float32)
    tl.store(y + b[:, None] * out_features + feature, narrow(out, y.dtype.element_ty, PRECISION), mask=inside)
