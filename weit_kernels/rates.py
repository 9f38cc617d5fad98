"""How fast machines are, as far as choosing a path needs it: CPUs as measured, GPUs as their data sheets say."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from math import inf

import torch

from weit_kernels import cpp, timings, tune
from weit_kernels.paths.blocks import Cost, Product


@dataclass(frozen=True)
class Rates:
    """A small model of one CPU: a peak, how products of small sizes fall short of it, copies, and calls.

    One product takes ``2 · Π (size + half) / flops`` seconds; a batch of small products has half sizes of its own. Each
    call of the library costs ``call`` seconds, each number that is copied into another order a read and a write.
    ``columns`` are those of a panel, whose filling was counted in the fit; 0: it was not.
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
    columns: int = 0

    def seconds(self, cost: Cost, itemsize: int, fused: float = 0.0, compulsory: int = 0) -> float:
        """Predicted time of one phase of a path; ``fused`` and ``compulsory`` matter on GPUs."""
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


# By what torch says of the CPU; "cpp" where the compiled kernels were timed beside plain torch. Fitted by
# `benchmarks.fit_rates` to what `benchmarks.plan_accuracy` timed on two cores; what counts is how the costs compare.
CPU: dict[str, dict[str, Rates]] = {
    "AVX512": {
        # Sapphire Rapids, float32, 280 choices: the fastest of three paths is picked in 94 %, at worst 1.28 times the
        # best. The 16-bit rates are from a CPU with AMX, 80 choices: 82 %, 1.17 times.
        "torch": Rates("CPU, AVX-512", 3.62e11, 1.88e10, 3.55e-5, 3.12, 30.5, 29.3, 3.92, 31.7, 0),
        "torch 16-bit": Rates("CPU, AVX-512, 16-bit", 1.65e12, 2.27e10, 5.24e-5, 132, 61.8, 173, 77.9, 2.51, 38.5),
    },
    "AVX512, AMD": {
        # EPYC of Zen 4, which multiplies pairs of 16-bit numbers. The fastest is picked, of 220 choices in float32 in 87 %,
        # 669 in bfloat16 86 %, 160 of convolutions 82 %, 120 of those in bfloat16 85 %; other ones: docs/speed.md.
        "torch": Rates("Zen 4", 1.33e11, 6.08e9, 3.28e-5, 30.2, 11.5, 4.21, 4.48, 15.8, 35.7),
        "cpp": Rates("Zen 4, compiled", 2.14e11, inf, 1.19e-5, 31.3, 7.85, 7.05, 8.63, 7.47, 0, columns=32),
        "torch conv": Rates("Zen 4, convolutions", 1.84e11, inf, 7.36e-5, 0.19, 32.7, 6.79, 12.6, 1.46, 0),
        "cpp conv": Rates(
            "Zen 4, compiled, convolutions", 2.28e11, 8.26e10, 1.34e-5, 30.7, 0, 0.547, 31.9, 1.43, 0, columns=32
        ),
        "torch 16-bit": Rates("Zen 4, 16-bit", 2.94e11, 1.41e10, 6.7e-5, 17.7, 0, 0, 21.7, 42.3, 0),
        "cpp 16-bit": Rates(
            "Zen 4, compiled, 16-bit", 4.32e11, inf, 1.19e-5, 66.7, 12.5, 14.4, 11.9, 14.7, 0.984, columns=32
        ),
        "torch 16-bit conv": Rates(
            "Zen 4, 16-bit convolutions", 3.73e11, 7.69e9, 9.74e-5, 14.2, 4.05, 8, 44.2, 0, 20.8
        ),
        "cpp 16-bit conv": Rates(
            "Zen 4, compiled, 16-bit convolutions", 4.53e11, inf, 1.27e-5, 95.3, 23, 0, 0, 44.4, 0, columns=32
        ),
    },
    "AVX2": {
        # EPYC with AVX2. float32, 140 choices: the fastest of five is picked in 89 %, at worst 1.32 times the best; 80
        # others: 92 %, 1.72 times; float64, with half the peak, 50 choices: 92 %, 1.31. bfloat16, which the library
        # multiplies without vectors there, 50 choices: 92 %, 1.13.
        "torch": Rates("CPU, AVX2", 8.91e10, 4.34e9, 8.92e-5, 5.92, 0, 0, 49.2, 0, 0),
        "cpp": Rates("CPU, AVX2, compiled", 1.51e11, inf, 3.74e-5, 24.1, 23.9, 0, 0, 41.7, 0),
        # Convolutions, float32, 334 choices, 235 of them fitted to; of the other 99 the fastest is picked in 85 %, in 93 %
        # one within 1.1 times of it, at worst 1.63; of 40 others, on a busy machine, 72 % and 85 %, 1.77.
        "torch conv": Rates("CPU, AVX2, convolutions", 8.69e10, 3.97e9, 3.37e-4, 5.23, 0, 0, 84.5, 0, 0),
        "cpp conv": Rates(
            "CPU, AVX2, compiled, convolutions", 1.2e11, inf, 1.21e-4, 28.4, 9.52, 0, 0, 27.5, 0, columns=16
        ),
        "torch 16-bit": Rates("CPU, AVX2, 16-bit", 7.01e9, 3.12e12, 1.41e-4, 0.857, 0, 30, 71.1, 1.81, 2.32),
        "cpp 16-bit": Rates("CPU, AVX2, compiled, 16-bit", 1.41e11, 1.87e10, 2.76e-5, 14.6, 46.2, 43.8, 0, 11.4, 22.9),
        # Those of linear layers, with what convolutions fill.
        "cpp 16-bit conv": Rates(
            "CPU, AVX2, compiled, 16-bit", 1.41e11, 1.87e10, 2.76e-5, 14.6, 46.2, 43.8, 0, 11.4, 22.9, columns=16
        ),
    },
}

# What the library's large products reach of the peak that a data sheet states, what the fused kernels do, and what
# starting a kernel costs: as seen over the suite in bfloat16 on an H100, whose shapes differ by a factor of two and more.
# They order the candidates; the nearest are timed before one is used.
LIBRARY_REACHED = 0.7
REACHED = {
    ("templates_first", "cuda"): 0.4,
    ("templates_first", "triton"): 0.2,
    ("scalers_first", "triton"): 0.1,
    ("on_the_fly", "triton"): 0.1,
}
LAUNCH = 5e-6


@dataclass(frozen=True)
class GpuRates:
    """A roofline: operations a second of the products, bytes a second of device memory.

    Plain torch starts one kernel for each product of each block, and every product and copy goes through memory. A
    fused kernel is one launch, bound by its operations or by the bytes that no path can avoid.
    """

    name: str
    flops: float
    bandwidth: float
    columns = 0  # not a field: kernels of GPUs have no panels

    def seconds(self, cost: Cost, itemsize: int, fused: float = 0.0, compulsory: int = 0) -> float:
        """Predicted time of one phase.

        ``fused`` is what a fused kernel reaches of the peak, 0 where none is used; ``compulsory`` counts the numbers that
        every path reads or writes.
        """
        if fused:
            compute = cost.flops / (fused * self.flops)
            return max(compute, compulsory * itemsize / self.bandwidth) + LAUNCH
        products = sum(
            max(p.flops / (LIBRARY_REACHED * self.flops), p.elements * itemsize / self.bandwidth) for p in cost.products
        )
        moved = 2 * cost.copied * itemsize / self.bandwidth
        return products + moved + LAUNCH * len(cost.products) * cost.blocks


@dataclass(frozen=True)
class DataSheet:
    """Peaks that a vendor states: dense products in 16 bits (float32 sums), in tf32, in float32; device memory."""

    half: float
    tf32: float
    single: float
    bandwidth: float

    def rates(self, name: str, dtype: torch.dtype) -> GpuRates:
        """The rates for products in ``dtype``."""
        if dtype.itemsize == 2:
            return GpuRates(name, self.half, self.bandwidth)
        if dtype == torch.float64:
            return GpuRates(name, self.single / 2, self.bandwidth)
        return GpuRates(name, self.tf32 if tune.allows_tf32() else self.single, self.bandwidth)


# From the vendor's data sheets, without sparsity; none of it measured. The first that the device's name holds counts.
DATA_SHEETS = {
    "A100": DataSheet(312e12, 156e12, 19.5e12, 2.0e12),
    "H100 PCIe": DataSheet(756e12, 378e12, 51e12, 2.0e12),
    "H100": DataSheet(989e12, 494e12, 67e12, 3.35e12),
    "H200": DataSheet(989e12, 494e12, 67e12, 4.8e12),
    "GB200": DataSheet(2250e12, 1125e12, 75e12, 8.0e12),
    "B200": DataSheet(2250e12, 1125e12, 75e12, 8.0e12),
    "RTX 4090": DataSheet(165e12, 82.6e12, 82.6e12, 1.008e12),
}


def rates_for(
    device: torch.device, dtype: torch.dtype, backend: str = "torch", conv: bool = False, *, measure: bool = True
) -> Rates | GpuRates:
    """The rates to plan with for a device, a dtype and a backend; the same for all backends of a GPU.

    Convolutions have rates of their own where they were measured: the library has other kernels for them. ``measure``: a
    GPU without a known data sheet may be measured now.
    """
    if device.type == "cpu":
        kind = cpu_kind()
        kind = kind if kind in CPU else "AVX512"  # how costs compare changes little
        names = [_name(backend, dtype), _name("torch", dtype)]
        if conv:
            names.insert(0, f"{names[0]} conv")
        rates = next(CPU[kind][name] for name in names if name in CPU[kind])
        if dtype != torch.float64:
            return rates
        return replace(rates, name=f"{rates.name}, float64", flops=rates.flops / 2, columns=rates.columns // 2)
    name = tune.device_name(device)
    for known, sheet in DATA_SHEETS.items():
        if re.search(rf"\b{known}\b", name) and "Laptop" not in name:
            return sheet.rates(f"{known}, data sheet", dtype)
    return measured(device, dtype, measure) or DATA_SHEETS["H100"].rates(
        "unknown GPU, taken for an H100, data sheet", dtype
    )


def cpu_kind() -> str:
    """What ``CPU`` calls this CPU: by its vectors, as torch says, and where they were measured, its maker's.

    On CPUs with AMX plain torch multiplies 16-bit numbers faster than vectors can.
    """
    vectors = torch.backends.cpu.get_cpu_capability()
    return "AVX512, AMD" if vectors == "AVX512" and cpp.multiplies_pairs() else vectors


def _name(backend: str, dtype: torch.dtype) -> str:
    """What ``CPU`` calls the rates of a backend; those of float64 are float32's with half the peak."""
    return f"{backend} 16-bit" if dtype.itemsize == 2 else backend


def compiled_unproven(dtype: torch.dtype, conv: bool = False) -> str:
    """Why nobody knows whether the compiled kernels beat plain torch on this CPU; empty where it was measured.

    Convolutions were timed in 32 and 16 bits. On CPUs with AVX2 ten of those in bfloat16, planned with the rates of linear
    layers: all ten choices were right.
    """
    kind = cpu_kind()
    if _name("cpp", dtype) in CPU.get(kind, {}) and not (conv and dtype == torch.float64):
        return ""
    return f"not timed beside plain torch on a CPU with {kind}; ask for backend='cpp'"


# Keys whose timing failed in this process: it is not tried again for every new shape.
_FAILED: set[str] = set()


def measured(device: torch.device, dtype: torch.dtype, measure: bool = True) -> GpuRates | None:
    """Rates of a GPU without a known data sheet: a product and a copy, timed once and kept in the tuning cache.

    ``None`` where nothing is kept and nothing may be timed.
    """
    key = tune.key("rates", device, dtype, f"tf32 {tune.allows_tf32()}")
    entry = timings.cache().get(key)
    if entry and entry.seconds.get("product") and entry.seconds.get("copy"):
        seconds = entry.seconds
    elif measure and key not in _FAILED and tune.may_time(device):
        try:
            with torch.cuda.device(device):
                seconds = _time_product_and_copy(device, dtype)
        except RuntimeError:  # out of memory above all: planning must not stop the caller
            seconds = {}
        if seconds.keys() != {"product", "copy"}:
            _FAILED.add(key)
            return None
        timings.cache().put(key, "product", seconds)
    else:
        return None
    flops, moved = 2 * _SIDE**3, 2 * _SIDE**2 * dtype.itemsize
    # What was measured is reached already, so the peak that it stands for is higher.
    return GpuRates(
        f"{tune.device_name(device)}, measured", flops / seconds["product"] / LIBRARY_REACHED, moved / seconds["copy"]
    )


_SIDE = 4096


def _time_product_and_copy(device: torch.device, dtype: torch.dtype) -> dict[str, float]:
    """Median seconds of a product of two square matrices, and of copying one."""
    generator = torch.Generator(device).manual_seed(0)  # zeros would draw less power, and run faster
    a, b = (torch.empty(_SIDE, _SIDE, device=device, dtype=dtype).normal_(generator=generator) for _ in range(2))
    calls = {"product": lambda: torch.mm(a, a), "copy": lambda: b.copy_(a)}
    return tune.fastest(calls, tune.cuda_timer)[1]
