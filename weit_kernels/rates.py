"""How fast machines are, as far as choosing a path needs it."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from weit_kernels.paths.blocks import Cost, Product


@dataclass(frozen=True)
class Rates:
    """A small model of one machine: a peak, how products of small sizes fall short of it, copies, and calls.

    One product takes ``2 · Π (size + half) / flops`` seconds; a batch of small products has half sizes of its own. Each
    call of the library costs ``call`` seconds, each number that is copied into another order a read and a write.
    """

    name: str
    flops: float
    copy: float
    call: float
    half_rows: float
    half_inner: float
    half_cols: float
    batch_half_rows: float
    batch_half_inner: float
    batch_half_cols: float

    def seconds(self, cost: Cost, itemsize: int) -> float:
        """Predicted time of one phase of a path."""
        products = sum(map(self._product_seconds, cost.products))
        calls = self.call * len(cost.products) * cost.blocks
        return products + calls + 2 * cost.copied * itemsize / self.copy

    def _product_seconds(self, product: Product) -> float:
        if product.batch == 1:
            half = (self.half_rows, self.half_inner, self.half_cols)
        else:
            half = (self.batch_half_rows, self.batch_half_inner, self.batch_half_cols)
        work = 2.0 * product.batch
        for size, h in zip((product.rows, product.inner, product.cols), half, strict=True):
            work *= size + h
        return work / self.flops


# Fitted by `benchmarks.fit_rates` to 280 choices on two Sapphire Rapids cores (AVX-512), float32: the fastest of three
# paths is picked in 94 % of them, the worst choice takes 1.28 times as long as the best. What counts is how the costs
# compare, and that changes little between CPUs. float64 has half the peak. The 16-bit rates are from a CPU with AMX,
# 80 choices: 82 % the fastest, the worst 1.17 times the best.
CPU = Rates("CPU, float32", 3.62e11, 1.88e10, 3.55e-5, 3.12, 30.5, 29.3, 3.92, 31.7, 0)
CPU_16_BIT = Rates("CPU, 16-bit", 1.65e12, 2.27e10, 5.24e-5, 132, 61.8, 173, 77.9, 2.51, 38.5)


def rates_for(device_type: str, dtype: torch.dtype) -> Rates:
    """The rates to plan with. No GPU is measured yet: the CPU's shape of a cost with a GPU's peak and copies."""
    if device_type != "cpu":
        return replace(CPU, name="GPU, not measured", flops=4e14, copy=3e12, call=1e-5)
    if dtype == torch.float64:
        return replace(CPU, name="CPU, float64", flops=CPU.flops / 2)
    return CPU if dtype == torch.float32 else CPU_16_BIT
