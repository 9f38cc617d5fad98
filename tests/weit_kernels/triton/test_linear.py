"""The fused kernels against the float64 reference: every path × dtype × layout × shape, on a GPU or interpreted."""

from collections.abc import Iterator

import pytest
import torch

from tests.weit_kernels.cases import (
    CASES,
    DTYPES,
    LAYOUTS,
    Case,
    assert_as_good_as_dense,
    reference_linear,
    relative_error,
)
from tests.weit_kernels.triton.direct import DEVICE, poisoned
from weit_kernels import kron_linear, plan

triton = pytest.importorskip("triton", reason="Triton is not installed")

from weit_kernels.triton import scalers_first, templates_first, weight_grads  # noqa: E402

PATHS = ("templates_first", "scalers_first")
HALF_AND_SINGLE = {name: dtype for name, dtype in DTYPES.items() if name != "fp64"}
# More rows than the tiles for few rows take; several programs on every axis, several steps of every loop, ragged ends.
MANY_TILES = Case("many_tiles", (75,), 10, 19, 18, 17, 70, cut_out=5, cut_in=9)
MANY_ROWS = Case("many_rows", (150,), 3, 4, 5, 6, 7, cut_out=1)
# A gradient that does not fit one tile: dT and dS in two launches, by either path.
TALL = Case("tall", (70,), 2, 600, 3, 2, 17)
DEEP = Case("deep", (70,), 2, 3, 2, 5, 300)
LARGE = [MANY_TILES, MANY_ROWS, TALL, DEEP]
FAST = {"plain", "ragged_both", "one_template", "scalar_templates", "scalar_scalers", "no_rows", "many_rows"}


def selection() -> list:
    """Every case; `make test` takes some of them in one dtype and both layouts."""
    return [
        pytest.param(case, dtype, id=f"{case.name}-{name}", marks=[] if fast else pytest.mark.triton_all)
        for case in [*CASES, *LARGE]
        for name, dtype in HALF_AND_SINGLE.items()
        for fast in [case.name in FAST and (name != "fp16" or case.name == "ragged_both")]
    ]


@pytest.fixture(autouse=True)
def poisoned_memory() -> Iterator[None]:
    """Fill what is allocated with NaN, so that an element no kernel wrote shows."""
    with poisoned():
        yield


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("case", "dtype"), selection())
def test_matches_the_reference(case: Case, dtype: torch.dtype, layout: str, path: str) -> None:
    def ours(x, T, S, b):
        return kron_linear(x, T, S, b, out_features=case.out_features, layout=layout, path=path, backend="triton")

    operands = [t.to(DEVICE) for t in case.operands(dtype)]
    assert_as_good_as_dense(ours, reference_linear(case, layout), operands, slack=1.5)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("wanted", ["x", "T", "S", "xT", "TS"])
def test_only_needed_gradients(wanted: str, path: str) -> None:
    case = Case("needed", (70,), 3, 4, 3, 7, 9, cut_out=6, cut_in=8)
    operands = [t.to(DEVICE) for t in case.operands(torch.float32)]

    def grads(function):
        leaves = [t.clone().requires_grad_(name in wanted) for name, t in zip("xTSb", operands, strict=True)]
        function(*leaves).square().sum().backward()
        return [leaf.grad for leaf in leaves]

    sizes = {"out_features": case.out_features}
    ours = grads(lambda *a: kron_linear(*a, **sizes, path=path, backend="triton"))
    theirs = grads(reference_linear(case, "block"))
    for name, a, c in zip("xTSb", ours, theirs, strict=True):
        assert (a is not None) == (name in wanted)
        if a is not None:
            assert relative_error(a, c) < 1e-5


def test_gradients_are_the_same_in_every_run() -> None:
    """Partial sums of many programs are added in a fixed order."""
    x, T, S, _ = (t.to(DEVICE) for t in Case("repeat", (300,), 3, 4, 5, 6, 7).operands(torch.float32))
    dy = torch.randn(300, 24, device=DEVICE)
    first = weight_grads.weight_grads(dy, x, T, S, [True, True])
    for again, once in zip(weight_grads.weight_grads(dy, x, T, S, [True, True]), first, strict=True):
        assert torch.equal(again, once)


@pytest.mark.parametrize("module", [templates_first, scalers_first], ids=PATHS)
def test_offsets_beyond_32_bits(module) -> None:
    """Rows 2**28 numbers apart, so that the last lie beyond 2**31; only what is touched takes memory."""
    if DEVICE == "cuda" and torch.cuda.mem_get_info()[0] < 24 << 30:
        pytest.skip("on a GPU all 10 GB are taken, and another worker may take as much")
    rows, features, stride = 10, 8, 1 << 28
    T, S = torch.randn(2, 4, 4, device=DEVICE), torch.randn(2, 2, 2, device=DEVICE)
    far_x = torch.empty_strided((rows, features), (stride, 1), dtype=torch.float16, device=DEVICE)
    far_y = torch.empty_strided((rows, features), (stride, 1), dtype=torch.float16, device=DEVICE)
    x = torch.randn(rows, features).half().to(DEVICE)
    far_x.copy_(x)
    far_y.fill_(float("nan"))
    T, S = T.half(), S.half()
    grid = (triton.cdiv(rows, 2),)
    module._kernel[grid](
        far_x, T, S, far_y, far_y, rows, 2, 2, 2, 4, 4, stride, stride, *T.stride(), *S.stride(),
        2, 16, 16, 16, 16, 16, False, "ieee",
    )  # fmt: skip
    # With the row stride in place of the features nothing is ragged: columns beyond the factors are masked by them.
    assert torch.equal(far_y.cpu(), module.linear(x, T, S, None, features).cpu())


@pytest.mark.parametrize("path", PATHS)
def test_strided_factors(path: str) -> None:
    case = Case("strided", (6,), 3, 4, 5, 6, 7)
    x, T, S, b = case.operands(torch.float32)
    strided = [x, *(t.transpose(1, 2).contiguous().transpose(1, 2) for t in (T, S)), b]

    def ours(*args):
        return kron_linear(*args, path=path, backend="triton")

    assert_as_good_as_dense(ours, reference_linear(case, "block"), [t.to(DEVICE) for t in strided], slack=3.0)


def test_the_plan_counts_the_same_operations_and_names_the_backend() -> None:
    sizes = (64, (4, 8, 4), (16, 16), torch.float32, DEVICE)
    fused = plan(*sizes, path="templates_first", backend="triton")
    assert (fused.path, fused.backend) == ("templates_first", "triton")
    assert fused.flops == plan(*sizes, path="templates_first", backend="torch").flops
    assert "triton" in fused.explain()


@pytest.mark.parametrize("path", [*PATHS, "panel", "on_the_fly"])
def test_float64_is_refused(path: str) -> None:
    operands = Case("refused", (3,), 2, 2, 2, 4, 4).operands(torch.float64)
    with pytest.raises(RuntimeError, match="too little for float64"):
        kron_linear(*(t.to(DEVICE) for t in operands), path=path, backend="triton")
