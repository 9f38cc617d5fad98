"""Panel: synthesise some rows of ``W`` into a bounded workspace, then use the library's product.

Costs ``1 + N/M`` of the dense product forward: the choice where neither order saves operations. A panel is the rows of
``W`` that belong to a few scaler rows ``i``, or to some template rows ``a`` of a single ``i`` where those alone are too
large. The panel, or that part of ``W``'s gradient, and the chunk of it whose axes are being put in order share
``WORKSPACE_BYTES``.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from weit_kernels.paths.blocks import (
    Cost,
    Product,
    accumulator,
    add_product,
    blocks,
    rows_per_block,
    widen,
    workspace,
)
from weit_kernels.paths.convolution import ConvArgs, conv_gradients, convolve
from weit_kernels.shapes import KronShape

Grads = tuple[Tensor | None, Tensor | None, Tensor | None]

WORKSPACE_BYTES = 32 << 20
CHUNK_BYTES = 2 << 20  # in cache on a CPU; on a GPU large enough to hide the launch


def cost(s: KronShape, M: int, phase: str, itemsize: int, device_type: str) -> Cost:
    """Products of one phase; ``M`` counts tokens, or output pixels of a convolution."""
    out, inn, block = s.m * s.p, s.n * s.q * s.taps, s.p * s.q * s.taps
    i, a = _panel_size(s.m, s.p, inn * itemsize)
    count = -(-s.m // i) * -(-s.p // a)
    row = a * inn * itemsize
    held = (i + rows_per_block(i, row, CHUNK_BYTES)) * row
    synthesis = Product(1, s.m * s.n, s.N, block)
    if phase == "forward":
        return Cost([synthesis, Product(1, M, inn, out)], out * inn, count, held)
    grads = [Product(1, s.N, s.m * s.n, block), Product(1, s.m * s.n, block, s.N)]
    return Cost([synthesis, Product(1, M, out, inn), Product(1, out, M, inn), *grads], 2 * out * inn, count, held)


def linear(x: Tensor, T: Tensor, S: Tensor, bias: Tensor | None, out: int) -> Tensor:
    """``x (M, in)`` → ``(M, out)``."""
    y = x.new_empty(x.shape[0], out)
    for panel in _panels(T, S, out):
        weight = panel.weight(T, S, x.shape[1])
        if bias is None:
            torch.mm(x, weight.t(), out=y[:, panel.out])
        else:
            torch.addmm(bias[panel.out], x, weight.t(), out=y[:, panel.out])
    return y


def linear_backward(dy: Tensor, x: Tensor, T: Tensor, S: Tensor, need: list[bool]) -> Grads:
    """``dy (M, out)``, ``x (M, in)`` → gradients of ``x``, ``T`` and ``S``; ``None`` where not needed."""
    dx = None
    factors = _FactorGrads(T, S, need)
    for panel in _panels(T, S, dy.shape[1]):
        dy_part = dy[:, panel.out]
        if need[0]:
            weight = panel.weight(T, S, x.shape[1])
            if dx is None:
                dx = (dy_part @ weight).to(torch.promote_types(x.dtype, torch.float32))
            else:
                add_product(dx, dy_part, weight)
        if need[1] or need[2]:
            dweight = workspace("panel", x, dy_part.shape[1], x.shape[1])
            factors.add(panel, torch.mm(dy_part.t(), x, out=dweight))
    return None if dx is None else dx.to(x.dtype), *factors.result()


def conv(x: Tensor, T: Tensor, S: Tensor, bias: Tensor | None, out: int, args: ConvArgs) -> Tensor:
    """``x (B, groups·in, *spatial)`` → ``(B, out, *spatial')``."""
    parts = []
    for panel in _panels(T, S, out, args):
        weight = panel.weight(T, S, x.shape[1] // args.groups)
        parts.append(convolve(x, weight, args, None if bias is None else bias[panel.out]))
    return parts[0] if len(parts) == 1 else torch.cat(parts, 1)


def conv_backward(dy: Tensor, x: Tensor, T: Tensor, S: Tensor, need: list[bool], args: ConvArgs) -> Grads:
    """``dy (B, out, *spatial')``, ``x (B, groups·in, *spatial)`` → gradients of ``x``, ``T`` and ``S``."""
    dx = None
    factors = _FactorGrads(T, S, need)
    for panel in _panels(T, S, dy.shape[1], args):
        weight = panel.weight(T, S, x.shape[1] // args.groups)
        dy_part = dy[:, panel.out].contiguous()
        dx_part, dweight = conv_gradients(dy_part, x, weight, args, [need[0], need[1] or need[2]])
        if dx_part is not None:
            dx = dx_part.to(torch.promote_types(x.dtype, torch.float32)) if dx is None else dx.add_(dx_part)
        if dweight is not None:
            factors.add(panel, dweight)
    return None if dx is None else dx.to(x.dtype), *factors.result()


# Axes of a weight, (m, p, n, q, taps) or (p, m, q, n, taps), in the order (m, n, p, q, taps) of its blocks.
_TO_BLOCKS = {"block": (0, 2, 1, 3, 4), "interleaved": (1, 3, 0, 2, 4)}


@dataclass(frozen=True)
class _Panel:
    """Scaler rows ``i`` and template rows ``a`` of ``W``, and the output features they make."""

    i: slice
    a: slice
    out: slice
    layout: str = "block"

    def weight(self, T: Tensor, S: Tensor, inn: int) -> Tensor:
        """``(features of out, in, *kernel)`` in workspace memory, without ragged edges."""
        T, S = T[:, self.a], S[:, self.i]
        N, p, q, *kernel = T.shape
        _, m, n = S.shape
        flat = T.reshape(N, -1)
        taps = flat.shape[1] // (p * q)
        weight = workspace("panel", T, *((m, p, n, q, taps) if self.layout == "block" else (p, m, q, n, taps)))
        ordered = weight.permute(_TO_BLOCKS[self.layout])
        for rows in blocks(m, n * flat.shape[1] * T.element_size(), CHUNK_BYTES):
            grid = workspace("block", T, (rows.stop - rows.start) * n, flat.shape[1])
            torch.mm(S[:, rows].reshape(N, -1).t(), flat, out=grid)
            ordered[rows] = grid.view(-1, n, p, q, taps)
        return weight.view(m * p, n * q, *kernel)[: self.out.stop - self.out.start, :inn]


def _panels(T: Tensor, S: Tensor, out: int, args: ConvArgs | None = None) -> Iterator[_Panel]:
    """Cut ``W`` into panels.

    A grouped convolution takes one panel: its rows belong to different inputs.
    """
    m, n = S.shape[1:]
    p = T.shape[1]
    if args is not None and args.groups > 1:
        yield _Panel(slice(0, m), slice(0, p), slice(0, out), args.layout)
        return
    i_step, a_step = _panel_size(m, p, n * T[0, 0].numel() * T.element_size())
    for i in range(0, m, i_step):
        i_end = min(m, i + i_step)
        for a in range(0, min(p, out - i * p), a_step):
            a_end = min(p, a + a_step)
            last = i_end * p if i_step > 1 else i * p + a_end
            yield _Panel(slice(i, i_end), slice(a, a_end), slice(i * p + a, min(out, last)))


def _panel_size(m: int, p: int, row_bytes: int) -> tuple[int, int]:
    """How many scaler rows, and template rows of each, make a panel; ``row_bytes`` is one row of ``W``."""
    if p * row_bytes > WORKSPACE_BYTES // 2:
        return 1, -(-p // -(-p * row_bytes // (WORKSPACE_BYTES // 2))) if row_bytes < WORKSPACE_BYTES // 2 else 1
    most = (WORKSPACE_BYTES - max(CHUNK_BYTES, p * row_bytes)) // (p * row_bytes)
    return -(-m // -(-m // max(1, most))), p


class _FactorGrads:
    """Sums ``dT`` and ``dS`` over panels of the weight's gradient, each contracted as soon as it exists."""

    def __init__(self, T: Tensor, S: Tensor, need: list[bool]) -> None:
        self.T, self.S = T, S
        self.dT = accumulator(T, *T.shape) if need[1] else None
        self.dS = accumulator(S, *S.shape) if need[2] else None

    def add(self, panel: _Panel, dweight: Tensor) -> None:
        T, S = self.T[:, panel.a], self.S[:, panel.i]
        N, p, q = T.shape[:3]
        m, n = S.shape[1:]
        dweight = widen(widen(dweight, n * q).transpose(0, 1), m * p).transpose(0, 1)
        grid = (m, p, n, q, -1) if panel.layout == "block" else (p, m, q, n, -1)
        ordered, flat = dweight.reshape(grid).permute(_TO_BLOCKS[panel.layout]), T.reshape(N, -1)
        for rows in blocks(m, n * flat.shape[1] * T.element_size(), CHUNK_BYTES):
            piece = workspace("block", T, (rows.stop - rows.start) * n, flat.shape[1])
            piece.view(ordered[rows].shape).copy_(ordered[rows])
            if self.dT is not None:
                self.dT[:, panel.a] += (S[:, rows].reshape(N, -1) @ piece).view(T.shape)
            if self.dS is not None:
                self.dS[:, panel.i][:, rows] += (flat @ piece.t()).view(N, -1, n)

    def result(self) -> tuple[Tensor | None, Tensor | None]:
        dT, dS = self.dT, self.dS
        return None if dT is None else dT.to(self.T.dtype), None if dS is None else dS.to(self.S.dtype)
