"""Weight tiles synthesised inside the product, and pointwise convolutions as linear layers, against the reference."""

from collections.abc import Iterator
from types import ModuleType

import pytest
import torch

from tests.weit_kernels.cases import CASES, DTYPES, LAYOUTS, Case, assert_as_good_as_dense, reference_linear
from weit_kernels import reference
from weit_kernels.paths.convolution import ConvArgs

pytest.importorskip("triton", reason="Triton is not installed")

from tests.weit_kernels.triton.direct import DEVICE, operator, poisoned
from weit_kernels.triton import on_the_fly, scalers_first, templates_first

HALF_AND_SINGLE = {name: dtype for name, dtype in DTYPES.items() if name != "fp64"}
# Several tiles on every axis with a ragged end on each: one scaler for a whole tile, one for each element of it,
# and more templates than are unrolled.
WHOLE_TILES = Case("whole_tiles", (37,), 3, 3, 3, 32, 64, cut_out=9, cut_in=5)
MANY_TILES = Case("many_tiles", (131,), 3, 5, 4, 33, 22, cut_out=5, cut_in=9)
MANY_TEMPLATES = Case("many_templates", (5,), 11, 2, 2, 32, 16)
EXTRA = [WHOLE_TILES, MANY_TILES, MANY_TEMPLATES]
FEW = [case for case in CASES if case.name in ("ragged_both", "scalar_templates", "row_templates", "no_rows")]


@pytest.fixture(autouse=True)
def poisoned_memory() -> Iterator[None]:
    with poisoned():
        yield


def check(case: Case, dtype: torch.dtype, layout: str) -> None:
    operands = [t.to(DEVICE) for t in case.operands(dtype)]
    ours = operator(on_the_fly, case.out_features, layout)
    assert_as_good_as_dense(ours, reference_linear(case, layout), operands, slack=1.5)


@pytest.mark.triton_all
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", HALF_AND_SINGLE.values(), ids=HALF_AND_SINGLE.keys())
@pytest.mark.parametrize("case", [*CASES, *EXTRA], ids=lambda case: case.name)
def test_matches_the_reference(case: Case, dtype: torch.dtype, layout: str) -> None:
    check(case, dtype, layout)


@pytest.mark.parametrize("dtype", HALF_AND_SINGLE.values(), ids=HALF_AND_SINGLE.keys())
@pytest.mark.parametrize("case", [*FEW, WHOLE_TILES, MANY_TEMPLATES], ids=lambda case: case.name)
def test_matches_the_reference_few(case: Case, dtype: torch.dtype) -> None:
    check(case, dtype, "block")


def test_the_cases_meet_every_kind_of_tile() -> None:
    def tiles(case: Case) -> on_the_fly.FlyTiles:
        return on_the_fly.fly_tiles(case.lead[0], case.p, case.q, case.N, 2)

    assert tiles(WHOLE_TILES).whole
    assert tiles(WHOLE_TILES).unrolled
    assert not tiles(MANY_TILES).whole
    assert tiles(MANY_TEMPLATES).whole
    assert not tiles(MANY_TEMPLATES).unrolled


def test_strided_factors_and_no_bias() -> None:
    case = Case("strided", (6,), 3, 4, 5, 6, 7)
    x, T, S, b = (t.to(DEVICE) for t in case.operands(torch.float32))
    strided = [x, *(t.transpose(1, 2).contiguous().transpose(1, 2) for t in (T, S)), torch.zeros_like(b)]
    apply = operator(on_the_fly, case.out_features)

    def ours(x, T, S, b):
        return apply(x, T, S, None) + b

    assert_as_good_as_dense(ours, reference_linear(case, "block"), strided, slack=1.5)


@pytest.mark.parametrize("wanted", [[True, False, False], [False, True, False], [False, False, True]])
def test_only_what_is_needed(wanted: list[bool]) -> None:
    case = Case("needed", (6,), 3, 2, 2, 6, 7)
    x, T, S, _ = (t.to(DEVICE) for t in case.operands(torch.float32))
    grads = on_the_fly.linear_backward(torch.ones(6, case.out_features, device=DEVICE), x, T, S, wanted)
    assert [grad is not None for grad in grads] == wanted


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize("batch", [1, 2])  # pixels of one map are rows without a copy
@pytest.mark.parametrize("path", [on_the_fly, templates_first, scalers_first])
def test_pointwise_convolutions(path: ModuleType, batch: int, dims: int, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(dims)
    shapes = [(batch, 11, *(4, 3, 2)[:dims]), (3, 5, 6, *(1,) * dims), (3, 4, 2), (18,)]
    operands = [torch.randn(*shape, generator=generator).to(dtype).to(DEVICE) for shape in shapes]
    ours = operator(path, 18, conv=ConvArgs((1,) * dims, (0,) * dims, (1,) * dims))

    def dense(x, T, S, b):
        return reference.kron_conv(x, T, S, b, out_channels=18)

    assert_as_good_as_dense(ours, dense, operands, slack=1.5)


def test_pointwise_convolution_of_nothing() -> None:
    args = ConvArgs((1, 1), (0, 0), (1, 1))
    x = torch.zeros(0, 6, 3, 2, device=DEVICE)
    T, S = torch.ones(2, 4, 3, 1, 1, device=DEVICE), torch.ones(2, 3, 2, device=DEVICE)
    y = on_the_fly.conv(x, T, S, None, 12, args)
    assert y.shape == (0, 12, 3, 2)
    dx, dT, dS = on_the_fly.conv_backward(y, x, T, S, [True] * 3, args)
    assert dx.shape == x.shape
    assert torch.equal(dT, torch.zeros_like(T))
    assert torch.equal(dS, torch.zeros_like(S))
