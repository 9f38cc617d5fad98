"""``synth`` and ``synth_grads`` on the emulator against float64, with plain torch's error as the yardstick."""

import ctypes

import pytest
import torch
from torch import Tensor

from tests.weit_kernels.cases import LAYOUTS, relative_error
from tests.weit_kernels.cuda.emulated import (
    ELEMENTS,
    Setting,
    Synth,
    SynthGrads,
    assert_inside,
    call,
    guarded,
    unwritten,
)
from weit_kernels.paths import synth as plain

DTYPES = pytest.mark.parametrize("dtype", ELEMENTS, ids=["fp32", "fp16", "bf16"])
# N, m, n, p, q, taps, and how many outputs and inputs the panel lacks
SIZES = {
    "plain": (3, 4, 5, 6, 7, 1, 0, 0),
    "vectors": (9, 6, 3, 5, 16, 1, 2, 8),
    "several_blocks": (4, 9, 10, 40, 64, 1, 0, 0),
    "taps": (2, 3, 4, 5, 6, 9, 4, 3),
    "one": (1, 1, 1, 1, 1, 1, 0, 0),
}
SIZED = pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES.keys())
SETTINGS = pytest.mark.parametrize(
    "setting", [Setting(), Setting(major=8, order=1, processors=132)], ids=["few_processors", "many_reversed"]
)


def operands(sizes: tuple[int, ...], dtype: torch.dtype, strided: bool) -> tuple[Tensor, Tensor, int, int]:
    N, m, n, p, q, taps, cut_out, cut_in = sizes
    generator = torch.Generator().manual_seed(0)
    T = torch.randn(N, p, q, taps, generator=generator, dtype=torch.float64).to(dtype)
    S = torch.randn(N, m, n, generator=generator, dtype=torch.float64).to(dtype)
    if strided:  # slices of a larger factor, as a panel of some rows sees them
        T, S = torch.cat([T, T], 1)[:, p:], torch.cat([S, S], 1)[:, m:].mT.contiguous().mT
    return T, S, m * p - cut_out, n * q - cut_in


def job_of(T: Tensor, S: Tensor, W: Tensor | None, out: int, inn: int, layout: str) -> Synth:
    (N, p, q, taps), (_, m, n) = T.shape, S.shape
    pointers = [None if t is None else t.data_ptr() for t in (T, S, W)]
    strides = (*T.flatten(2).stride(), *S.stride())
    return Synth(ELEMENTS[T.dtype], N, m, n, p, q, taps, out, inn, *pointers, *strides, layout == "interleaved")


@SETTINGS
@pytest.mark.parametrize("strided", [False, True])
@pytest.mark.parametrize("layout", LAYOUTS)
@SIZED
@DTYPES
def test_weight(kernels, sizes, layout: str, dtype: torch.dtype, strided: bool, setting: Setting) -> None:
    T, S, out, inn = operands(sizes, dtype, strided)
    exact, dense = (plain.weight(f(T), f(S), out, inn, layout, 1 << 20).clone() for f in (Tensor.double, Tensor.clone))
    T, S, W = guarded(T), guarded(S), unwritten(T, *exact.shape)
    assert call(kernels("synth"), "synth", job_of(T, S, W, out, inn, layout), setting) == 0
    assert_inside(W)
    eps = torch.finfo(dtype).eps
    assert relative_error(W, exact) <= 2 * max(relative_error(dense, exact), eps)


@SETTINGS
@pytest.mark.parametrize("need", [(True, True), (True, False), (False, True)], ids=["both", "dT", "dS"])
@pytest.mark.parametrize("layout", LAYOUTS)
@SIZED
@DTYPES
def test_gradients(kernels, sizes, layout: str, dtype: torch.dtype, need, setting: Setting) -> None:
    T, S, out, inn = operands(sizes, dtype, strided=True)
    generator = torch.Generator().manual_seed(1)
    dW = torch.randn(out, inn, T.shape[3], generator=generator, dtype=torch.float64).to(dtype)
    exact = [torch.ones_like(t, dtype=torch.float64) for t in (T, S)]  # what is there is added to
    plain.add_gradients(dW.double(), T.double(), S.double(), *exact, layout, 1 << 20)
    T, S, dW = guarded(T), guarded(S), guarded(dW)
    grads = [guarded(torch.ones(t.shape)) if wanted else None for t, wanted in zip((T, S), need, strict=True)]
    pointers = [None if t is None else t.data_ptr() for t in (dW, *grads)]
    job = SynthGrads(job_of(T, S, None, out, inn, layout), *pointers, None, 0)
    library = kernels("synth")
    library.emulator_set(setting.processors, setting.major, setting.minor, setting.order, 0)
    scratch = unwritten(T, library.emulated_synth_grads_scratch(ctypes.byref(job)) // 4, dtype=torch.float32)
    job.scratch, job.scratch_bytes = scratch.data_ptr(), 4 * scratch.numel()
    assert call(library, "synth_grads", job, setting) == 0
    assert_inside(scratch)
    for got, truth in zip(grads, exact, strict=True):
        if got is not None:
            assert_inside(got)
            assert relative_error(got, truth) <= 1e-6  # sums are of float32 whatever the operands are


def test_too_little_scratch_is_refused(kernels) -> None:
    T, S, out, inn = operands(SIZES["plain"], torch.float32, strided=False)
    dT, dW = torch.zeros_like(T), torch.zeros(out, inn, 1)
    job = SynthGrads(job_of(T, S, None, out, inn, "block"), dW.data_ptr(), dT.data_ptr(), None, dT.data_ptr(), 4)
    assert call(kernels("synth"), "synth_grads", job, Setting()) == 1
