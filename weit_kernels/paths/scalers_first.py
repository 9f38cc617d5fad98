"""Scalers first: ``U[b,i,t,k] = Σ_j S·x``, then ``y[b,i,a] = Σ_{t,k} U·T``.

Costs ``N/n + N/p`` of the dense product: the cheap order when ``n > m``. For each token ``S`` as ``[(i, t), j]`` meets
``x`` as ``[j, k]``; rows ``(b, i)`` of the result then meet ``T`` as ``[(t, k), a]``. The backward pass recomputes
``U`` for ``dT``, and ``P[b,i,t,k] = Σ_a T·dy`` serves ``dx`` and ``dS``.
"""

from __future__ import annotations

import torch
from torch import Tensor

from weit_kernels.paths.blocks import (
    TOKENS,
    Cost,
    Maps,
    Product,
    accumulator,
    add_product,
    block_bytes,
    in_order,
    row_blocks,
    row_bytes,
    rows_per_block,
    widen,
    workspace,
)
from weit_kernels.paths.convolution import ConvArgs, conv_gradients, convolve
from weit_kernels.shapes import KronShape

Grads = tuple[Tensor | None, Tensor | None, Tensor | None]


def cost(s: KronShape, M: int, phase: str, itemsize: int, device_type: str, maps: Maps = TOKENS) -> Cost:
    """Products of one phase; ``M`` counts tokens, or output pixels of a convolution, whose blocks are whole images.

    ``S`` meets the pixels of a convolution's input, of which there may be more or fewer than of its output.
    """
    images, backward = M // maps.outputs, phase == "backward"
    inputs, u_size, y_size = images * maps.inputs, s.m * s.N * s.q * maps.inputs, s.m * s.p * maps.outputs
    row = row_bytes(u_size, s.m * s.N * s.n, itemsize, device_type, gradient=backward)
    step = rows_per_block(images, row, block_bytes(device_type))
    returned = u_size if backward else y_size  # by a convolution of the library, in memory of its own
    own = returned * itemsize if s.kernel else 0
    u = Product(inputs, s.m * s.N, s.n, s.q)
    y = Product(1, M * s.m, s.N * s.q * s.taps, s.p)
    P = Product(1, M * s.m, s.p, s.N * s.q * s.taps)
    dx = Product(inputs, s.n, s.m * s.N, s.q)
    dT = Product(1, s.N * s.q * s.taps, M * s.m, s.p)
    dS = Product(inputs, s.m * s.N, s.q, s.n)
    products = [u, dT, P, dx, dS] if backward else [u, y]
    copied = s.N * s.p * s.q * s.taps * (2 if backward else 1)  # T as columns, dT back from them
    return Cost(products, copied, blocks=-(-images // step), workspace=step * (row + own))


def linear(x: Tensor, T: Tensor, S: Tensor, bias: Tensor | None, out: int) -> Tensor:
    """``x (M, in)`` → ``(M, out)``."""
    N, p, q = T.shape
    _, m, n = S.shape
    M, x = x.shape[0], widen(x, n * q)
    mix, columns = _mix(S), _columns(T).t()
    bias = None if bias is None else widen(bias.view(1, -1), m * p)
    y = x.new_empty(M, m * p)
    for b in row_blocks(x, m * N * q, m * N * n):
        x_b = x[b].view(-1, n, q)
        u = workspace("block", x, x_b.shape[0], m * N, q)
        torch.bmm(mix.expand(x_b.shape[0], -1, -1), x_b, out=u)
        torch.mm(u.view(-1, N * q), columns, out=y[b].view(-1, p))
        if bias is not None:
            y[b] += bias
        del u  # before the next is made
    return y[:, :out].contiguous()


def linear_backward(dy: Tensor, x: Tensor, T: Tensor, S: Tensor, need: list[bool]) -> Grads:
    """``dy (M, out)``, ``x (M, in)`` → gradients of ``x``, ``T`` and ``S``; ``None`` where not needed."""
    N, p, q = T.shape
    _, m, n = S.shape
    M, inn = x.shape
    x, dy = widen(x, n * q), widen(dy, m * p)
    mix, columns = _mix(S), _columns(T)
    dx = x.new_empty(M, n, q) if need[0] else None
    dcolumns = accumulator(x, p, N * q) if need[1] else None
    dmix = accumulator(x, m * N, n) if need[2] else None
    for b in row_blocks(x, m * N * q, m * N * n, gradient=need[2]):
        x_b, dy_rows = x[b].view(-1, n, q), dy[b].view(-1, p)
        u = du = workspace("block", x, x_b.shape[0], m * N, q)  # one after the other in the same memory
        if dcolumns is not None:
            torch.bmm(mix.expand(x_b.shape[0], -1, -1), x_b, out=u)
            add_product(dcolumns, dy_rows.t(), u.view(-1, N * q))
        if dx is not None or dmix is not None:
            torch.mm(dy_rows, columns, out=du.view(-1, N * q))
            if dx is not None:
                torch.bmm(mix.mT.expand(x_b.shape[0], -1, -1), du, out=dx[b])
            if dmix is not None:
                dmix += torch.bmm(du, x_b.mT).sum(0, dtype=dmix.dtype)
        del u, du  # before the next are made
    dx = None if dx is None else dx.view(M, n * q)[:, :inn].contiguous()
    return dx, _template_grad(dcolumns, T), _scaler_grad(dmix, S)


def conv(x: Tensor, T: Tensor, S: Tensor, bias: Tensor | None, out: int, args: ConvArgs) -> Tensor:
    """``x (B, in, *spatial)`` → ``(B, out, *spatial')``: ``S`` mixes channels, then the templates convolve."""
    N, p, q, *kernel = T.shape
    _, m, n = S.shape
    B, spatial, x = x.shape[0], x.shape[2:], widen(x, n * q)
    mix, filters = _mix(S), _columns(T).view(p, N * q, *kernel)
    bias = None if bias is None else widen(bias.view(1, -1), m * p)
    size = args.output_size(spatial, kernel)
    y = x.new_empty(B, m * p, *size)
    for b in row_blocks(x, m * N * q * spatial.numel(), m * N * n):
        u = workspace("block", x, b.stop - b.start, m * N, q * spatial.numel())
        torch.bmm(mix.expand(u.shape[0], -1, -1), x[b].view(-1, n, q * spatial.numel()), out=u)
        y[b] = convolve(u.view(-1, N * q, *spatial), filters, args).view(-1, m * p, *size)
        if bias is not None:
            y[b] += bias.view(-1, *[1] * len(size))
        del u
    return y[:, :out].contiguous()


def conv_backward(dy: Tensor, x: Tensor, T: Tensor, S: Tensor, need: list[bool], args: ConvArgs) -> Grads:
    """``dy (B, out, *spatial')``, ``x (B, in, *spatial)`` → gradients of ``x``, ``T`` and ``S``."""
    N, p, q, *kernel = T.shape
    _, m, n = S.shape
    inn, spatial = x.shape[1], x.shape[2:]
    x, dy = widen(x, n * q), widen(dy, m * p)
    mix, filters = _mix(S), _columns(T).view(p, N * q, *kernel)
    dx = torch.empty_like(x) if need[0] else None
    dfilters = accumulator(x, *filters.shape) if need[1] else None
    dmix = accumulator(x, m * N, n) if need[2] else None
    for b in row_blocks(x, m * N * q * spatial.numel(), m * N * n, gradient=need[2]):
        x_b, dy_maps = x[b].view(-1, n, q * spatial.numel()), dy[b].view(-1, p, *dy.shape[2:])
        u = workspace("block", x, x_b.shape[0], m * N, q * spatial.numel())
        torch.bmm(mix.expand(x_b.shape[0], -1, -1), x_b, out=u)
        u = u.view(-1, N * q, *spatial)
        du, df = conv_gradients(dy_maps, u, filters, args, [need[0] or need[2], need[1]])
        if dfilters is not None and df is not None:
            dfilters += df
        if du is not None:
            du = du.view(-1, m * N, q * spatial.numel())
            if dx is not None:
                torch.bmm(mix.mT.expand(x_b.shape[0], -1, -1), du, out=dx[b].view_as(x_b))
            if dmix is not None:
                dmix += torch.bmm(du, x_b.mT).sum(0, dtype=dmix.dtype)
        del u, du, df
    dx = None if dx is None else dx[:, :inn].contiguous()
    return dx, _template_grad(dfilters, T), _scaler_grad(dmix, S)


def _mix(S: Tensor) -> Tensor:
    """``S`` as ``[1, (i, t), j]``."""
    N, m, n = S.shape
    return S.permute(1, 0, 2).reshape(1, m * N, n)


def _columns(T: Tensor) -> Tensor:
    """``T`` as ``[a, (t, k, *kernel)]``."""
    return T.transpose(0, 1).reshape(T.shape[1], -1)


def _template_grad(dcolumns: Tensor | None, T: Tensor) -> Tensor | None:
    if dcolumns is None:
        return None
    N, p, *rest = T.shape
    return in_order(dcolumns.view(p, N, *rest).transpose(0, 1), T.dtype)


def _scaler_grad(dmix: Tensor | None, S: Tensor) -> Tensor | None:
    if dmix is None:
        return None
    N, m, n = S.shape
    return in_order(dmix.view(m, N, n).transpose(0, 1), S.dtype)
