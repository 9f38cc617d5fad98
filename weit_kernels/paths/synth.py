"""What makes a panel of ``W`` from its factors, and what brings a panel of ``W``'s gradient back to them.

``weit_kernels.triton.synth`` has ``weight``, ``gradients`` and ``add_gradients`` too; the loop over panels takes either.
"""

from __future__ import annotations

from math import prod

import torch
from torch import Tensor

from weit_kernels.paths.blocks import accumulator, blocks, rows_per_block, widen, workspace

Pair = tuple[Tensor | None, Tensor | None]

# Axes of a weight, (m, p, n, q, taps) or (p, m, q, n, taps), in the order (m, n, p, q, taps) of its blocks, and back.
_TO_BLOCKS = {"block": (0, 2, 1, 3, 4), "interleaved": (1, 3, 0, 2, 4)}
_FROM_BLOCKS = {"block": (0, 2, 1, 3, 4), "interleaved": (2, 0, 3, 1, 4)}


def weight(T: Tensor, S: Tensor, out: int, inn: int, layout: str, scratch_bytes: int) -> Tensor:
    """``W = Σ_t S_t ⊗ T_t``, cut to ``out`` rows and ``inn`` columns, in workspace memory.

    ``T (N, p, q, *kernel)``, ``S (N, m, n)`` → ``(out, inn, *kernel)``; ``scratch_bytes`` bounds what is put in order
    at a time.
    """
    N, p, q, *kernel = T.shape
    _, m, n = S.shape
    flat = T.reshape(N, -1)
    taps = flat.shape[1] // (p * q)
    panel = workspace("panel", T, *((m, p, n, q, taps) if layout == "block" else (p, m, q, n, taps)))
    ordered = panel.permute(_TO_BLOCKS[layout])
    for rows in blocks(m, n * flat.shape[1] * T.element_size(), scratch_bytes):
        grid = workspace("block", T, (rows.stop - rows.start) * n, flat.shape[1])
        torch.mm(S[:, rows].reshape(N, -1).t(), flat, out=grid)
        ordered[rows] = grid.view(-1, n, p, q, taps)
    return panel.view(m * p, n * q, *kernel)[:out, :inn]


def whole_weight(T: Tensor, S: Tensor, out: int, inn: int, layout: str) -> Tensor:
    """The same in memory of its own, for weights so small that each further call costs more than what it saves."""
    N, p, q, *kernel = T.shape
    _, m, n = S.shape
    grid = torch.mm(S.reshape(N, -1).t(), T.reshape(N, -1)).view(m, n, p, q, -1)
    full = grid.permute(_FROM_BLOCKS[layout]).reshape(m * p, n * q, *kernel)
    return full if full.shape[:2] == (out, inn) else full[:out, :inn]


def whole_gradients(dweight: Tensor, T: Tensor, S: Tensor, need: list[bool], layout: str) -> Pair:
    """``dT`` and ``dS`` of ``dweight (out, in, *kernel)``; ``None`` where not needed."""
    ordered = _in_blocks(dweight, T, S, layout)
    return _contracted(ordered.reshape(S[0].numel(), -1), T, S, need)


def _contracted(piece: Tensor, T: Tensor, S: Tensor, need: list[bool]) -> Pair:
    """``dT`` and ``dS`` of blocks ``(m·n, p·q·taps)``."""
    N = S.shape[0]
    dT = torch.mm(S.reshape(N, -1), piece).view(T.shape) if need[0] else None
    dS = torch.mm(T.reshape(N, -1), piece.t()).view(S.shape) if need[1] else None
    return dT, dS


def _in_blocks(dweight: Tensor, T: Tensor, S: Tensor, layout: str) -> Tensor:
    """``(out, in, *kernel)`` → ``(m, n, p, q, taps)``, a view where the weight is not ragged."""
    (p, q), (m, n) = T.shape[1:3], S.shape[1:]
    if dweight.shape[:2] != (m * p, n * q):
        dweight = widen(widen(dweight, n * q).transpose(0, 1), m * p).transpose(0, 1)
    grid = (m, p, n, q, -1) if layout == "block" else (p, m, q, n, -1)
    return dweight.reshape(grid).permute(_TO_BLOCKS[layout])


def gradients(dweight: Tensor, T: Tensor, S: Tensor, need: list[bool], layout: str, scratch_bytes: int) -> Pair:
    """What ``add_gradients`` adds to zeros, rounded to the factors' dtypes; ``None`` where not needed."""
    m = S.shape[1]
    if rows_per_block(m, _row_bytes(T, S), scratch_bytes) == m:  # one product each, so nothing to add up
        return _contracted(_piece(_in_blocks(dweight, T, S, layout), T), T, S, need)
    dT, dS = accumulator(T, *T.shape) if need[0] else None, accumulator(S, *S.shape) if need[1] else None
    add_gradients(dweight, T, S, dT, dS, layout, scratch_bytes)
    return None if dT is None else dT.to(T.dtype), None if dS is None else dS.to(S.dtype)


def add_gradients(
    dweight: Tensor, T: Tensor, S: Tensor, dT: Tensor | None, dS: Tensor | None, layout: str, scratch_bytes: int
) -> None:
    """Add to ``dT`` and ``dS``, where present, what ``dweight (out, in, *kernel)`` contributes.

    ``T (N, p, q, *kernel)`` and ``S (N, m, n)`` are the factors of this panel; ``dT`` and ``dS`` have their shapes.
    """
    ordered, need = _in_blocks(dweight, T, S, layout), [dT is not None, dS is not None]
    for rows in blocks(S.shape[1], _row_bytes(T, S), scratch_bytes):
        totals = dT, None if dS is None else dS[:, rows]
        for total, more in zip(totals, _contracted(_piece(ordered[rows], T), T, S[:, rows], need), strict=True):
            if total is not None and more is not None:
                total += more


def _row_bytes(T: Tensor, S: Tensor) -> int:
    """One row ``i`` of blocks."""
    return S.shape[2] * T[0].numel() * T.element_size()


def _piece(ordered: Tensor, like: Tensor) -> Tensor:
    """``(rows, n, p, q, taps)`` → ``(rows·n, p·q·taps)`` in workspace memory, until the next is made."""
    rows, n, *block = ordered.shape
    piece = workspace("block", like, rows * n, prod(block))
    piece.view(ordered.shape).copy_(ordered)
    return piece
