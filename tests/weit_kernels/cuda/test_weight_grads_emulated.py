"""``weight_grads`` on the emulator against float64, with plain torch's error as the yardstick."""

import ctypes

import pytest
import torch
from torch import Tensor

from tests.weit_kernels.cases import CASES, Case, relative_error
from tests.weit_kernels.cuda.emulated import (
    ELEMENTS,
    INVALID_VALUE,
    NOT_SUPPORTED,
    Setting,
    WeightGrads,
    assert_inside,
    call,
    guarded,
    unwritten,
)
from weit_kernels.paths import templates_first

DTYPES = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
SETTINGS = pytest.mark.parametrize(
    "setting",
    [Setting(), Setting(major=8, order=1, processors=60, copies_late=False), Setting(major=12, order=7)],
    ids=lambda s: f"sm_{s.major}{s.minor}-order{s.order}",
)
# Several tiles of tokens; more templates, scaler columns and rows, template rows and columns than a block takes; ragged.
LARGE = [
    Case("vectors", (40,), 3, 8, 8, 16, 40, cut_in=8, cut_out=8),
    Case("scaler_columns", (9,), 9, 40, 20, 18, 16),
    Case("columns", (10,), 2, 16, 16, 72, 200, cut_in=3),
    Case("many_scalers", (3,), 4, 200, 36, 8, 8),
]


def job_of(operands: list[Tensor]) -> WeightGrads:
    """Without memory for results."""
    dy, x, T, S = operands
    (N, p, q), (_, m, n) = T.shape, S.shape
    sizes = (x.shape[0], N, m, n, p, q, x.shape[1], dy.shape[1])
    pointers = [t.data_ptr() for t in operands]
    return WeightGrads(ELEMENTS[x.dtype], *sizes, *pointers, None, None, *T.stride(), *S.stride())


def gradients(library: ctypes.CDLL, operands: list[Tensor], need: tuple[bool, bool], setting: Setting) -> list:
    """``dT`` and ``dS`` as the caller adds them up, ``None`` where not needed."""
    _, x, T, S = operands
    job = job_of(operands)
    library.emulator_set(setting.processors, setting.major, setting.minor, setting.order, 0)
    job.splits = library.emulated_weight_grads_splits(ctypes.byref(job))
    parts = [
        unwritten(x, count, *like.shape, dtype=torch.float32) if wanted else None
        for wanted, count, like in zip(need, (job.splits.dT, job.splits.dS), (T, S), strict=True)
    ]
    job.dT, job.dS = (None if part is None else part.data_ptr() for part in parts)
    assert call(library, "weight_grads", job, setting) == 0
    assert_inside(*(part for part in parts if part is not None))
    return [None if part is None else part.sum(0) for part in parts]


def drawn(case: Case, dtype: torch.dtype) -> list[Tensor]:
    """``dy``, ``x``, ``T`` and ``S``."""
    x, T, S, _ = case.operands(dtype)
    x = x.reshape(-1, case.in_features)
    dy = torch.randn(x.shape[0], case.out_features, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return [dy.to(dtype), x, T, S]


def assert_right(library: ctypes.CDLL, operands: list[Tensor], need: tuple[bool, bool], setting: Setting) -> None:
    dtype = operands[0].dtype
    exact, plain = (
        templates_first.linear_backward(*(f(t) for t in operands), [False, True, True])[1:]
        for f in (Tensor.double, Tensor.clone)
    )
    got = gradients(library, [guarded(t) for t in operands], need, setting)
    for wanted, ours, theirs, truth in zip(need, got, plain, exact, strict=True):
        assert (ours is not None) == wanted
        if wanted:
            bound = 2 * max(relative_error(theirs, truth), torch.finfo(dtype).eps)
            assert relative_error(ours.to(dtype), truth) <= bound


@SETTINGS
@DTYPES
@pytest.mark.parametrize("case", [case for case in CASES if 0 not in case.lead] + LARGE, ids=lambda case: case.name)
def test_matches_plain_torch(kernels, case: Case, dtype: torch.dtype, setting: Setting) -> None:
    assert_right(kernels("weight_grads"), drawn(case, dtype), (True, True), setting)


@pytest.mark.parametrize("need", [(True, False), (False, True)], ids=["dT", "dS"])
def test_only_what_is_needed_of_factors_of_any_strides(kernels, need: tuple[bool, bool]) -> None:
    dy, x, T, S = drawn(LARGE[0], torch.bfloat16)
    operands = [dy, x, T.mT.contiguous().mT, S.mT.contiguous().mT]
    assert_right(kernels("weight_grads"), operands, need, Setting(order=1))


def test_the_other_order_exchanges_the_sides(kernels) -> None:
    """What the caller does where ``n > m``."""
    dy, x, T, S = drawn(LARGE[0], torch.bfloat16)
    library = kernels("weight_grads")
    straight = gradients(library, [dy, x, T, S], (True, True), Setting())
    exchanged = gradients(library, [x, dy, T.mT, S.mT], (True, True), Setting())
    for a, b in zip(straight, exchanged, strict=True):
        assert relative_error(b.mT, a) < 0.01


@pytest.mark.parametrize(("major", "groups"), [(8, 5), (9, 3)])
def test_splits_of_another_kernel_are_refused(kernels, major: int, groups: int) -> None:
    """Of so many groups that each have partial sums of ``dS``, one alone would have no more."""
    operands = drawn(Case("blocks_of_rows", (3,), 3, 33, 70, 136, 64), torch.bfloat16)
    job, parts = job_of(operands), unwritten(operands[0], 2 * groups, 3, 33, 70, dtype=torch.float32)
    job.dS = parts.data_ptr()
    for splits, code in ((groups + 1, INVALID_VALUE), (2 * groups, 0)):
        job.splits.dS = splits
        assert call(kernels("weight_grads"), "weight_grads", job, Setting(major=major)) == code
    assert not parts.isnan().any()


def test_float32_has_no_kernel(kernels) -> None:
    job = WeightGrads(ELEMENTS[torch.float32], *[1] * 8)
    assert call(kernels("weight_grads"), "weight_grads", job, Setting()) == NOT_SUPPORTED
