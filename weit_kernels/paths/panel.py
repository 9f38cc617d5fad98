"""Panel: synthesise some rows of ``W`` into a bounded workspace, then use the library's product.

Costs ``1 + N/M`` of the dense product forward: the choice where neither order saves operations. A panel is the rows of
``W`` that belong to a few scaler rows ``i``, or to some template rows ``a`` of a single ``i`` where those alone are too
large. The panel, or that part of ``W``'s gradient, and the chunk of it whose axes are being put in order share
``WORKSPACE_BYTES``. What makes a panel and contracts its gradient is an argument: a module with ``weight``, ``gradients``
and ``add_gradients``, as ``weit_kernels.paths.synth`` has them. On a CPU a small ``W`` is made whole, in memory of its own.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from types import ModuleType

import torch
import torch.nn.functional as F
from torch import Tensor

from weit_kernels.paths import synth as plain
from weit_kernels.paths.blocks import (
    TOKENS,
    WORKSPACE_BYTES,
    Cost,
    Maps,
    Product,
    accumulator,
    rows_per_block,
    workspace,
)
from weit_kernels.paths.convolution import ConvArgs, conv_gradients, convolve, memory_format
from weit_kernels.shapes import KronShape

Grads = tuple[Tensor | None, Tensor | None, Tensor | None]

SMALL_BYTES = 256 << 10  # a weight is made whole, without the loop, which would take longer than the products
CHANNELS_LAST = True  # maps of convolutions may be so
CHUNK_BYTES = 2 << 20  # in cache on a CPU; on a GPU large enough to hide the launch


def cost(s: KronShape, M: int, phase: str, itemsize: int, device_type: str, maps: Maps = TOKENS) -> Cost:
    """Products of one phase; ``M`` counts tokens, or output pixels of a convolution."""
    out, inn, block = s.m * s.p, s.n * s.q * s.taps, s.p * s.q * s.taps
    i, a = (s.m, s.p) if maps.grouped else _panel_size(s.m, s.p, inn * itemsize)
    count = -(-s.m // i) * -(-s.p // a)
    row = a * inn * itemsize
    held = (i + rows_per_block(i, row, CHUNK_BYTES)) * row
    synthesis = Product(1, s.m * s.n, s.N, block)
    if phase == "forward":
        return Cost([synthesis, Product(1, M, inn, out)], out * inn, count, held)
    if s.kernel:
        held += i * row  # the panel stays until the library has made its gradient
    grads = [Product(1, s.N, s.m * s.n, block), Product(1, s.m * s.n, block, s.N)]
    return Cost([synthesis, Product(1, M, out, inn), Product(1, out, M, inn), *grads], 2 * out * inn, count, held)


def linear(x: Tensor, T: Tensor, S: Tensor, bias: Tensor | None, out: int, *, synth: ModuleType = plain) -> Tensor:
    """``x (M, in)`` → ``(M, out)``."""
    if _is_small(T, S, synth):
        return F.linear(x, plain.whole_weight(T, S, out, x.shape[1], "block"), bias)
    panels = list(_panels(T, S, out))
    if len(panels) == 1:  # the library may then add the bias as it stores
        return F.linear(x, panels[0].weight(T, S, x.shape[1], synth), bias)
    y = x.new_empty(x.shape[0], out)
    for panel in panels:
        weight = panel.weight(T, S, x.shape[1], synth)
        if bias is None:
            torch.mm(x, weight.t(), out=y[:, panel.out])
        else:
            torch.addmm(bias[panel.out], x, weight.t(), out=y[:, panel.out])
        del weight  # before the next is made
    return y


def linear_backward(
    dy: Tensor, x: Tensor, T: Tensor, S: Tensor, need: list[bool], *, synth: ModuleType = plain
) -> Grads:
    """``dy (M, out)``, ``x (M, in)`` → gradients of ``x``, ``T`` and ``S``; ``None`` where not needed."""
    if _is_small(T, S, synth):
        dx = dy @ plain.whole_weight(T, S, dy.shape[1], x.shape[1], "block") if need[0] else None
        dT, dS = plain.whole_gradients(dy.t() @ x, T, S, need[1:], "block") if any(need[1:]) else (None, None)
        return dx, dT, dS
    panels = list(_panels(T, S, dy.shape[1]))
    dx = _input_grad(dy, T, S, x.shape[1], panels, synth) if need[0] else None
    if not any(need[1:]):
        return dx, None, None
    factors = _FactorGrads(T, S, need[1:], synth, panels)
    for panel in panels:
        dy_part = dy[:, panel.out]
        dweight = torch.mm(dy_part.t(), x, out=workspace("panel", x, dy_part.shape[1], x.shape[1]))
        factors.add(panel, dweight)
        del dweight  # before the next is made
    return dx, *factors.result()


def _input_grad(dy: Tensor, T: Tensor, S: Tensor, inn: int, panels: list[_Panel], synth: ModuleType) -> Tensor:
    if len(panels) == 1:
        return dy @ panels[0].weight(T, S, inn, synth)
    # The adjoint is the same layer with transposed factors; its panels of columns of W need no sums of parts of dx.
    return linear(dy, T.mT.contiguous(), S.mT.contiguous(), None, inn, synth=synth)


def conv(
    x: Tensor, T: Tensor, S: Tensor, bias: Tensor | None, out: int, args: ConvArgs, *, synth: ModuleType = plain
) -> Tensor:
    """``x (B, groups·in, *spatial)`` → ``(B, out, *spatial')``."""
    if _is_small(T, S, synth):
        return convolve(x, plain.whole_weight(T, S, out, x.shape[1] // args.groups, args.layout), args, bias)
    parts = []
    for panel in _panels(T, S, out, args):
        weight = panel.weight(T, S, x.shape[1] // args.groups, synth)
        parts.append(convolve(x, weight, args, None if bias is None else bias[panel.out]))
    return parts[0] if len(parts) == 1 else torch.cat(parts, 1)


def conv_backward(
    dy: Tensor, x: Tensor, T: Tensor, S: Tensor, need: list[bool], args: ConvArgs, *, synth: ModuleType = plain
) -> Grads:
    """``dy (B, out, *spatial')``, ``x (B, groups·in, *spatial)`` → gradients of ``x``, ``T`` and ``S``."""
    if _is_small(T, S, synth):
        weight = plain.whole_weight(T, S, dy.shape[1], x.shape[1] // args.groups, args.layout)
        dx, dweight = conv_gradients(dy, x, weight, args, [need[0], any(need[1:])])
        if dweight is None:
            return dx, None, None
        dT, dS = plain.whole_gradients(dweight, T, S, need[1:], args.layout)
        return dx, dT, dS
    dx = None
    panels = list(_panels(T, S, dy.shape[1], args))
    factors = _FactorGrads(T, S, need[1:], synth, panels)
    for panel in panels:
        weight = panel.weight(T, S, x.shape[1] // args.groups, synth)
        dy_part = dy[:, panel.out].contiguous(memory_format=memory_format(x))
        dx_part, dweight = conv_gradients(dy_part, x, weight, args, [need[0], any(need[1:])])
        del weight  # before its gradient is contracted, and before the next is made
        if dx_part is not None and dx is not None:
            dx.add_(dx_part)
        elif dx_part is not None:
            dx = dx_part if len(panels) == 1 else dx_part.to(torch.promote_types(x.dtype, torch.float32))
        if dweight is not None:
            factors.add(panel, dweight)
        del dweight
    return None if dx is None else dx.to(x.dtype), *factors.result()


def _is_small(T: Tensor, S: Tensor, synth: ModuleType) -> bool:
    """Whether all of ``W`` is made at once; what another ``synth`` would take is its own affair."""
    return synth is plain and T.device.type == "cpu" and S[0].numel() * T[0].numel() * T.element_size() <= SMALL_BYTES


@dataclass(frozen=True)
class _Panel:
    """Scaler rows ``i`` and template rows ``a`` of ``W``, and the output features they make."""

    i: slice
    a: slice
    out: slice
    layout: str = "block"

    def weight(self, T: Tensor, S: Tensor, inn: int, synth: ModuleType = plain) -> Tensor:
        """``(features of out, in, *kernel)`` in workspace memory, without ragged edges."""
        rows = self.out.stop - self.out.start
        weight: Tensor = synth.weight(T[:, self.a], S[:, self.i], rows, inn, self.layout, CHUNK_BYTES)
        return weight


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


def _scratch(dweight: Tensor, synth: ModuleType) -> int:
    """Bytes that contracting ``dweight`` may take beside it.

    Plain torch puts a chunk in order, in a CPU's cache, and takes as much again for products of it. Others take partial
    sums alone, as many as the workspace holds, and a copy of a ``dweight`` whose numbers are not in order.
    """
    if synth is plain:
        return CHUNK_BYTES
    held = dweight.numel() * dweight.element_size() * (1 if dweight.is_contiguous() else 2)
    return max(CHUNK_BYTES, WORKSPACE_BYTES - held)


class _FactorGrads:
    """Sums ``dT`` and ``dS`` over panels of the weight's gradient, each contracted as soon as it exists."""

    def __init__(self, T: Tensor, S: Tensor, need: list[bool], synth: ModuleType, panels: list[_Panel]) -> None:
        self.T, self.S, self.need, self.synth, self.single = T, S, need, synth, len(panels) == 1
        self.dT = accumulator(T, *T.shape) if need[0] and not self.single else None
        self.dS = accumulator(S, *S.shape) if need[1] and not self.single else None

    def add(self, panel: _Panel, dweight: Tensor) -> None:
        scratch = _scratch(dweight, self.synth)
        if self.single:
            self.dT, self.dS = self.synth.gradients(dweight, self.T, self.S, self.need, panel.layout, scratch)
            return
        dT = None if self.dT is None else self.dT[:, panel.a]
        dS = None if self.dS is None else self.dS[:, panel.i]
        T, S = self.T[:, panel.a], self.S[:, panel.i]
        self.synth.add_gradients(dweight, T, S, dT, dS, panel.layout, scratch)

    def result(self) -> tuple[Tensor | None, Tensor | None]:
        dT, dS = self.dT, self.dS
        return None if dT is None else dT.to(self.T.dtype), None if dS is None else dS.to(self.S.dtype)
