"""``few_rows`` on the emulator against float64, with the dense product's error as the yardstick."""

import ctypes
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from tests.weit_kernels.cases import CASES, DTYPES, RAGGED, Case, relative_error
from tests.weit_kernels.cuda.emulated import (
    ELEMENTS,
    Chain,
    Setting,
    assert_inside,
    call,
    guarded,
    unwritten,
)
from weit_kernels import reference

NARROW = {name: dtype for name, dtype in DTYPES.items() if dtype in ELEMENTS}
SETTINGS = [Setting(), Setting(major=8, order=1, copies_late=False), Setting(major=12, order=7, processors=132)]
# Vector loads with a part of a tile left over; several tiles for each warp; chunks of both inner axes; split scaler rows.
LARGE = [
    Case("vectors", (3,), 3, 5, 8, 12, 40, cut_in=16, cut_out=5),
    Case("large_tiles", (17,), 4, 16, 16, 24, 64),
    Case("chunks", (9,), 20, 20, 48, 9, 16),
    Case("split_scalers", (2,), 2, 80, 8, 3, 24),
]
LAYOUTS: dict[str, Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]] = {
    "contiguous": lambda T, S: (T, S),
    "transposed": lambda T, S: (T.mT.contiguous().mT, S.mT.contiguous().mT),
    "gaps": lambda T, S: (torch.stack([T, T], -1)[..., 1], torch.stack([S, S], 2)[:, :, 1]),
}


def chain_of(x: Tensor, T: Tensor, S: Tensor, bias: Tensor | None, y: Tensor) -> Chain:
    (N, p, q), (_, m, n) = T.shape, S.shape
    pointers = [None if t is None else t.data_ptr() for t in (x, T, S, bias, y)]
    sizes = (x.shape[0], N, m, n, p, q, x.shape[1], y.shape[1])
    return Chain(ELEMENTS[x.dtype], *sizes, *pointers, *T.stride(), *S.stride())


def assert_right(
    library: ctypes.CDLL, name: str, case: Case, dtype: torch.dtype, setting: Setting, layout: str = "contiguous"
) -> None:
    x, T, S, bias = case.operands(dtype)
    x = x.reshape(-1, case.in_features)
    T, S = LAYOUTS[layout](T, S)
    made = [guarded(t) for t in (x, T, S, bias)]
    y = unwritten(x, x.shape[0], case.out_features)
    for b in (made[3], None):
        y.fill_(float("nan"))
        assert call(library, name, chain_of(*made[:3], b, y), setting) == 0
        assert_inside(y)
        operands = [x, T, S, None if b is None else bias]
        exact, dense = (
            reference.kron_linear(*(None if t is None else f(t) for t in operands), out_features=case.out_features)
            for f in (Tensor.double, lambda t: t)
        )
        eps = torch.finfo(dtype).eps
        bound = 2 * max(relative_error(dense, exact), eps) + (eps if dtype == torch.float32 else 0)
        assert relative_error(y, exact) <= bound


@pytest.mark.parametrize("dtype", NARROW.values(), ids=NARROW.keys())
@pytest.mark.parametrize("case", [*CASES, *LARGE], ids=lambda case: case.name)
def test_matches_the_reference(kernels, case: Case, dtype: torch.dtype) -> None:
    assert_right(kernels("few_rows"), "few_rows", case, dtype, SETTINGS[0])


@pytest.mark.parametrize("setting", SETTINGS[1:], ids=lambda s: f"sm_{s.major}{s.minor}-order{s.order}")
@pytest.mark.parametrize("dtype", NARROW.values(), ids=NARROW.keys())
@pytest.mark.parametrize("case", [RAGGED, *LARGE], ids=lambda case: case.name)
def test_on_any_device_in_any_order(kernels, case: Case, dtype: torch.dtype, setting: Setting) -> None:
    assert_right(kernels("few_rows"), "few_rows", case, dtype, setting)


@pytest.mark.parametrize(
    ("case", "dtype"),
    [
        (Case("124_KiB", (8,), 4, 64, 16, 48, 8), torch.float32),
        (Case("104_KiB", (8,), 8, 64, 16, 24, 16), torch.bfloat16),
        (Case("99_KiB", (4,), 16, 16, 32, 12, 8), torch.float32),
    ],
    ids=lambda value: getattr(value, "name", None),
)
def test_fits_in_the_99_kib_of_smaller_gpus(kernels, case: Case, dtype: torch.dtype) -> None:
    """By name what these sizes take on a GPU that has it, with so few processors that each has plenty to do."""
    assert_right(kernels("few_rows"), "few_rows", case, dtype, Setting(major=12, processors=4))


@pytest.mark.parametrize("layout", ["transposed", "gaps"])
@pytest.mark.parametrize("dtype", NARROW.values(), ids=NARROW.keys())
@pytest.mark.parametrize("case", [CASES[0], *LARGE[:2]], ids=lambda case: case.name)
def test_factors_of_any_strides(kernels, case: Case, dtype: torch.dtype, layout: str) -> None:
    assert_right(kernels("few_rows"), "few_rows", case, dtype, SETTINGS[1], layout)
