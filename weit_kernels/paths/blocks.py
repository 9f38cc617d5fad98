"""What the paths share: cutting work into blocks whose intermediates stay in cache, and sums in enough precision."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from math import prod
from typing import Any

import torch
from torch import Tensor

# Bytes of one block's intermediate. On a CPU 8 MiB is best over the suite, forward and training (two Sapphire Rapids
# cores, 2 MiB of L2 each, a large L3; 1, 2, 4, 8 and 16 MiB were compared): 1.03 to 1.2 times as fast as 2 MiB. The
# second product alone is fastest at 1 to 2 MiB, but the first, where most operations are, wants more rows. On a GPU the
# bound is the workspace that a layer may take, 32 MiB, less what the sums over a block take.
CPU_BLOCK_BYTES = 8 << 20
GPU_BLOCK_BYTES = 24 << 20
WORKSPACE_BYTES = 32 << 20  # of panels; and the most that one slot of workspace keeps on a CPU


def block_bytes(device_type: str) -> int:
    """Most bytes that one block's intermediate may take."""
    return CPU_BLOCK_BYTES if device_type == "cpu" else GPU_BLOCK_BYTES


def row_bytes(intermediate: int, matrix: int, itemsize: int, device_type: str, *, gradient: bool) -> int:
    """Bytes of one row of a block: so many numbers of its intermediate, and what its product with a matrix takes.

    The matrix is the same for all rows. Of its ``gradient``, where wanted, each row's share exists before they are summed.
    On a CPU the library copies 16-bit matrices for each row, and widens in a copy what it sums in float32.
    """
    copies = itemsize == 2 and device_type == "cpu"
    share = itemsize + 4 * copies if gradient else itemsize * copies
    return intermediate * itemsize + matrix * share


def rows_per_block(rows: int, bytes_per_row: int, most_bytes: int) -> int:
    """How many rows (tokens, images or weight rows) to take at a time; blocks are of nearly equal length."""
    most = max(1, most_bytes // max(1, bytes_per_row))
    return max(1, -(-rows // max(1, -(-rows // most))))


def blocks(rows: int, bytes_per_row: int, most_bytes: int) -> Iterator[slice]:
    """Slices that cover ``range(rows)``, each with at most ``most_bytes`` or a single row."""
    step = rows_per_block(rows, bytes_per_row, most_bytes)
    for start in range(0, rows, step):
        yield slice(start, min(rows, start + step))


def row_blocks(x: Tensor, intermediate: int, matrix: int, *, gradient: bool = False) -> Iterator[slice]:
    """Slices that cover the rows of ``x`` (tokens, or images) as ``row_bytes`` counts them for its dtype and device."""
    row = row_bytes(intermediate, matrix, x.element_size(), x.device.type, gradient=gradient)
    return blocks(x.shape[0], row, block_bytes(x.device.type))


def workspace(slot: str, like: Tensor, *shape: int) -> Tensor:
    """Uninitialised memory for one block, on a CPU the same for every call and every layer of a thread.

    A fresh allocation of some MiB costs more in page faults than the copy it serves; on a GPU the allocator already
    reuses memory in stream order. What a single large image takes is not kept. The result must not leave the operator, and
    each ``slot`` has one user at a time.
    """
    size, key = prod(shape), (slot, like.dtype)
    if like.device.type != "cpu" or size * like.element_size() > WORKSPACE_BYTES:
        return like.new_empty(shape)
    kept: dict[Any, Tensor] = _KEPT.__dict__
    if key not in kept or kept[key].numel() < size:
        with torch.inference_mode(False):  # else only inference could write to it
            kept[key] = torch.empty(size, dtype=like.dtype)
    return kept[key][:size].view(shape)


_KEPT = threading.local()


def widen(x: Tensor, features: int) -> Tensor:
    """Pad axis 1 with zeros up to ``features``; a ragged operand becomes a whole one, others pass through."""
    if x.shape[1] == features:
        return x
    wide = x.new_zeros(x.shape[0], features, *x.shape[2:])
    wide[:, : x.shape[1]] = x
    return wide


def in_order(values: Tensor, dtype: torch.dtype) -> Tensor:
    """A copy with the strides of a new tensor, for DDP warns of gradients whose strides are not their parameter's.

    ``contiguous()`` leaves those of permuted axes of one as they are.
    """
    return values.to(dtype, copy=True, memory_format=torch.contiguous_format)


def accumulator(like: Tensor, *shape: int) -> Tensor:
    """Zeros to sum into: float32 for 16-bit operands, else their own dtype."""
    return like.new_zeros(shape, dtype=torch.promote_types(like.dtype, torch.float32))


def add_product(total: Tensor, a: Tensor, b: Tensor) -> None:
    """``total += a @ b`` with the sum kept in ``total``'s precision."""
    if total.dtype == a.dtype:
        torch.addmm(total, a, b, out=total)  # unlike addmm_, counted by torch.utils.flop_counter
    else:
        total.add_(a @ b)


@dataclass(frozen=True)
class Product:
    """``batch`` matrix products ``rows × inner × cols``, repeated for every block of the work."""

    batch: int
    rows: int
    inner: int
    cols: int

    @property
    def flops(self) -> int:
        """Two operations a multiply-add."""
        return 2 * self.batch * self.rows * self.inner * self.cols

    @property
    def elements(self) -> int:
        """Numbers read and written when nothing is reused between the products of the batch."""
        return self.batch * (self.rows * self.inner + self.inner * self.cols + self.rows * self.cols)


@dataclass(frozen=True)
class Cost:
    """What one phase of a path does, for the planner: its products, plain copies, blocks and workspace."""

    products: list[Product] = field(default_factory=list)
    copied: int = 0
    blocks: int = 1
    workspace: int = 0

    @property
    def flops(self) -> int:
        """Operations of all products."""
        return sum(product.flops for product in self.products)


@dataclass(frozen=True)
class Maps:
    """Pixels of one image of a convolution's input and output, and whether channels are in groups; a token is a pixel."""

    inputs: int = 1
    outputs: int = 1
    grouped: bool = False


TOKENS = Maps()
