"""Templates first: ``Z[b,j,t,a] = Σ_k x·T``, then ``y[b,i,a] = Σ_{j,t} S·Z``.

Costs ``N/m + N/q`` of the dense product. In the block layout both steps are plain matrix products of views: rows
``(b, j)`` of ``x`` against rows ``(t, a)`` of ``T``, then for each token ``S`` as ``[i, (j, t)]`` against ``Z`` as
``[(j, t), a]``. Nothing is regrouped or copied. The backward pass mirrors it: ``V[b,j,t,a] = Σ_i S·dy`` serves ``dx``
and ``dT``, and ``Z`` is recomputed, block by block, for ``dS``.
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
    """Products of one phase; ``M`` counts tokens, or output pixels of a convolution, whose blocks are whole images."""
    images, backward = M // maps.outputs, phase == "backward"
    z_size, dx_size = s.n * s.N * s.p * maps.outputs, s.n * s.q * maps.inputs
    row = row_bytes(z_size, s.n * s.N * s.m, itemsize, device_type, gradient=backward)
    step = rows_per_block(images, row, block_bytes(device_type))
    own = dx_size * itemsize if s.kernel and backward else 0  # what the library returns, in memory of its own
    z = Product(1, M * s.n, s.q * s.taps, s.N * s.p)
    y = Product(M, s.m, s.n * s.N, s.p)
    forward = [z, y]
    v = Product(M, s.n * s.N, s.m, s.p)
    dx = Product(1, M * s.n, s.N * s.p, s.q * s.taps)
    dT = Product(1, s.N * s.p, M * s.n, s.q * s.taps)
    dS = Product(M, s.m, s.p, s.n * s.N)
    products = [z, v, dx, dT, dS] if backward else forward
    return Cost(products, blocks=-(-images // step), workspace=step * (row + own))


def linear(x: Tensor, T: Tensor, S: Tensor, bias: Tensor | None, out: int) -> Tensor:
    """``x (M, in)`` → ``(M, out)``."""
    N, p, q = T.shape
    _, m, n = S.shape
    M, x = x.shape[0], widen(x, n * q)
    rows_of_T, mix = T.reshape(N * p, q), S.permute(1, 2, 0).reshape(1, m, n * N)
    bias = None if bias is None else widen(bias.view(1, -1), m * p).view(m, p)
    y = x.new_empty(M, m, p)
    for b in row_blocks(x, n * N * p, n * N * m):
        x_rows = x[b].view(-1, q)
        z = workspace("block", x, x_rows.shape[0], N * p)
        torch.mm(x_rows, rows_of_T.t(), out=z)
        _mix_into(y[b], mix, z.view(-1, n * N, p), bias)
        del z  # before the next is made
    return y.view(M, m * p)[:, :out].contiguous()


def linear_backward(dy: Tensor, x: Tensor, T: Tensor, S: Tensor, need: list[bool]) -> Grads:
    """``dy (M, out)``, ``x (M, in)`` → gradients of ``x``, ``T`` and ``S``; ``None`` where not needed."""
    N, p, q = T.shape
    _, m, n = S.shape
    M, inn = x.shape
    x, dy = widen(x, n * q), widen(dy, m * p)
    rows_of_T, mix = T.reshape(N * p, q), S.permute(1, 2, 0).reshape(1, m, n * N)
    dx = x.new_empty(M, n * q) if need[0] else None
    dT = accumulator(x, N * p, q) if need[1] else None
    dmix = accumulator(x, m, n * N) if need[2] else None
    for b in row_blocks(x, n * N * p, n * N * m, gradient=need[2]):
        x_rows, dy_b = x[b].view(-1, q), dy[b].view(-1, m, p)
        v = z = workspace("block", x, x_rows.shape[0], N * p)  # one after the other in the same memory
        if dx is not None or dT is not None:
            torch.bmm(mix.mT.expand(dy_b.shape[0], -1, -1), dy_b, out=v.view(-1, n * N, p))
            if dx is not None:
                torch.mm(v, rows_of_T, out=dx[b].view(-1, q))
            if dT is not None:
                add_product(dT, v.t(), x_rows)
        if dmix is not None:
            torch.mm(x_rows, rows_of_T.t(), out=z)
            dmix += torch.bmm(dy_b, z.view(-1, n * N, p).mT).sum(0, dtype=dmix.dtype)
        del v, z  # before the next are made
    return _cut(dx, inn), _template_grad(dT, T), _scaler_grad(dmix, S)


def conv(x: Tensor, T: Tensor, S: Tensor, bias: Tensor | None, out: int, args: ConvArgs) -> Tensor:
    """``x (B, in, *spatial)`` → ``(B, out, *spatial')``: the templates convolve, then ``S`` mixes channels."""
    N, p, q, *kernel = T.shape
    _, m, n = S.shape
    B, size, x = x.shape[0], args.output_size(x.shape[2:], kernel), widen(x, n * q)
    filters, mix = T.reshape(N * p, q, *kernel), S.permute(1, 2, 0).reshape(1, m, n * N)
    if bias is not None:
        bias = widen(bias.view(1, -1), m * p).view(m, p, 1).expand(m, p, size.numel()).reshape(m, -1)
    y = x.new_empty(B, m, p * size.numel())
    for b in row_blocks(x, n * N * p * size.numel(), n * N * m):
        z = convolve(x[b].view(-1, q, *x.shape[2:]), filters, args, keep=False)
        _mix_into(y[b], mix, z.view(-1, n * N, p * size.numel()), bias)
        del z
    return y.view(B, m * p, *size)[:, :out].contiguous()


def conv_backward(dy: Tensor, x: Tensor, T: Tensor, S: Tensor, need: list[bool], args: ConvArgs) -> Grads:
    """``dy (B, out, *spatial')``, ``x (B, in, *spatial)`` → gradients of ``x``, ``T`` and ``S``."""
    N, p, q, *kernel = T.shape
    _, m, n = S.shape
    inn, size = x.shape[1], dy.shape[2:]
    x, dy = widen(x, n * q), widen(dy, m * p)
    filters, mix = T.reshape(N * p, q, *kernel), S.permute(1, 2, 0).reshape(1, m, n * N)
    dx = torch.empty_like(x) if need[0] else None
    dT = accumulator(x, *filters.shape) if need[1] else None
    dmix = accumulator(x, m, n * N) if need[2] else None
    for b in row_blocks(x, n * N * p * size.numel(), n * N * m, gradient=need[2]):
        x_maps, dy_b = x[b].view(-1, q, *x.shape[2:]), dy[b].view(-1, m, p * size.numel())
        if dx is not None or dT is not None:
            v = workspace("block", x, dy_b.shape[0], n * N, p * size.numel())
            torch.bmm(mix.mT.expand(dy_b.shape[0], -1, -1), dy_b, out=v)
            v = v.view(-1, N * p, *size)
            dx_b, dT_b = conv_gradients(v, x_maps, filters, args, need[:2])
            if dx is not None and dx_b is not None:
                dx[b].view_as(x_maps).copy_(dx_b)
            if dT is not None and dT_b is not None:
                dT += dT_b
            del v, dx_b, dT_b
        if dmix is not None:
            z = convolve(x_maps, filters, args, keep=False)
            dmix += torch.bmm(dy_b, z.view(-1, n * N, p * size.numel()).mT).sum(0, dtype=dmix.dtype)
            del z
    return _cut(dx, inn), _template_grad(dT, T), _scaler_grad(dmix, S)


def _cut(dx: Tensor | None, inn: int) -> Tensor | None:
    return None if dx is None else dx[:, :inn].contiguous()


def _mix_into(y: Tensor, mix: Tensor, z: Tensor, bias: Tensor | None) -> None:
    """``y[b] = mix @ z[b] (+ bias)``; ``y (b, m, p·pixels)``, ``z (b, n·N, p·pixels)``, ``bias (m, p·pixels)``."""
    torch.bmm(mix.expand(z.shape[0], -1, -1), z, out=y)
    if bias is not None:  # while y is still in cache; baddbmm writes the bias first, which takes longer
        y += bias


def _template_grad(dT: Tensor | None, T: Tensor) -> Tensor | None:
    return None if dT is None else dT.view(T.shape).to(T.dtype)


def _scaler_grad(dmix: Tensor | None, S: Tensor) -> Tensor | None:
    if dmix is None:
        return None
    N, m, n = S.shape
    return in_order(dmix.view(m, n, N).permute(2, 0, 1), S.dtype)
