"""How fast machines are, as far as choosing a path needs it."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from weit_kernels.paths.blocks import Cost, Product


@dataclass(frozen=True)
class Rates:
    """A small model of one machine: a peak, how products of small sizes fall short of it, bandwidth, and fixed costs.

    One product takes ``2 · Π (size + half) / flops + bytes / bandwidth``; a batch of small products has half
    sizes of its own and a cost for each; each call of the library has one too.
    """

    name: str
    flops: float = 4.4e11
    bandwidth: float = 4e10
    call: float = 8e-6
    half_rows: float = 8
    half_inner: float = 8
    half_cols: float = 8
    batch_half_rows: float = 4
    batch_half_inner: float = 4
    batch_half_cols: float = 8
    batch_each: float = 5e-8
    copy: float = 1e10
    fixed: float = 3e-5

    def seconds(self, cost: Cost, itemsize: int) -> float:
        """Predicted time of one phase of a path."""
        products = sum(self._product_seconds(product, itemsize) for product in cost.products)
        calls = self.call * len(cost.products) * cost.blocks
        return self.fixed + products + calls + 2 * cost.copied * itemsize / self.copy

    def _product_seconds(self, product: Product, itemsize: int) -> float:
        if product.batch == 1:
            half, each = (self.half_rows, self.half_inner, self.half_cols), 0.0
        else:
            half = (self.batch_half_rows, self.batch_half_inner, self.batch_half_cols)
            each = self.batch_each * product.batch
        work = 2.0 * product.batch
        for size, h in zip((product.rows, product.inner, product.cols), half, strict=True):
            work *= size + h
        return work / self.flops + product.elements * itemsize / self.bandwidth + each


def rates_for(device_type: str, dtype: torch.dtype) -> Rates:
    return Rates("x")
