"""Partial sums added up in one launch, for both factors' gradients at once.

On an H100 contracting the gradient of a weight took 31 µs however small it was: sums, additions and casts of each factor
were kernels of their own.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from weit_kernels.triton.tiles import narrow, power_of_two, precision

_TILE = 4096  # numbers that a program has in flight: 32 a thread


def sum_parts(*given: tuple[Tensor | None, Tensor | None, bool]) -> None:
    """For one or two of ``(parts, total, add)``: ``total = Σ parts`` in a fixed order, or with ``add`` ``total += Σ parts``.

    ``parts (count, N, ...)`` contiguous float32; ``total (N, ...)`` of any dtype, contiguous within each of its ``N``. What
    nobody wants may be ``None``.
    """
    sums = [(parts, total, add) for parts, total, add in given if parts is not None and total is not None]
    (first, first_total, first_adds), (second, second_total, second_adds) = sums[0], sums[-1]
    tiles = [_tile(parts) for parts, _, _ in (sums[0], sums[-1])]
    programs = [triton.cdiv(total.numel(), elements) for (_, total, _), (_, elements) in zip(sums, tiles, strict=False)]
    _kernel[(sum(programs),)](
        first, first_total, first.shape[0], first_total.numel(), first_total[0].numel(), first_total.stride(0),
        second, second_total, second.shape[0], second_total.numel(), second_total[0].numel(), second_total.stride(0),
        programs[0], *tiles[0], first_adds, *tiles[1], second_adds, precision(first_total), precision(second_total),
    )  # fmt: skip


def _tile(parts: Tensor) -> tuple[int, int]:
    """Parts and elements of a program: few parts leave room for longer runs of elements."""
    rows = power_of_two(parts.shape[0], 256)
    return rows, min(1024, _TILE // rows)


@triton.jit
def _kernel(
    A, A_total, A_parts, A_count, A_size, A_row, B, B_total, B_parts, B_count, B_size, B_row, A_programs,
    AR: tl.constexpr, AC: tl.constexpr, A_ADDS: tl.constexpr, BR: tl.constexpr, BC: tl.constexpr, B_ADDS: tl.constexpr,
    A_PRECISION: tl.constexpr, B_PRECISION: tl.constexpr,
):  # fmt: skip
    """A program owns ``AC`` elements of the first total or ``BC`` of the second."""
    program = tl.program_id(0)
    if program < A_programs:
        _sum(A, A_total, program, A_parts, A_count, A_size, A_row, AR, AC, A_ADDS, A_PRECISION)
    else:
        _sum(B, B_total, program - A_programs, B_parts, B_count, B_size, B_row, BR, BC, B_ADDS, B_PRECISION)


@triton.jit
def _sum(
    parts, total, program, many, count, size, row,
    ROWS: tl.constexpr, COLS: tl.constexpr, ADDS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """``many`` parts of ``count`` numbers; the total's rows of ``size`` numbers are ``row`` apart."""
    begin = program.to(tl.int64) * COLS
    at = begin + tl.arange(0, COLS)
    value = tl.zeros((COLS,), tl.float32)
    for first in range(0, many, ROWS):
        part = first + tl.arange(0, ROWS)
        inside = (part < many)[:, None] & (at < count)[None, :]
        value += tl.sum(tl.load(parts + part.to(tl.int64)[:, None] * count + at[None, :], mask=inside, other=0.0), 0)
    beside = (begin % size).to(tl.int32) + tl.arange(0, COLS)  # vectors of 64 bits would take long to divide
    place = total + (begin // size + beside // size) * row + beside % size
    if ADDS:
        value += tl.load(place, mask=at < count, other=0.0).to(tl.float32)
    tl.store(place, narrow(value, total.dtype.element_ty, PRECISION), mask=at < count)
