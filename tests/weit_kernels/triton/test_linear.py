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
)
from weit_kernels import kron_linear, plan

pytest.importorskip("triton", reason="Triton is not installed")

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
PATHS = ("templates_first", "scalers_first")
HALF_AND_SINGLE = {name: dtype for name, dtype in DTYPES.items() if name != "fp64"}
# A grid of several programs on every axis, several steps of every loop, and a ragged end on each.
MANY_TILES = Case("many_tiles", (37,), 10, 19, 18, 33, 70, cut_out=5, cut_in=9)


@pytest.fixture(autouse=True)
def poisoned_memory() -> Iterator[None]:
    """Fill what is allocated with NaN, so that an element no kernel wrote shows."""
    torch.use_deterministic_algorithms(True)
    assert torch.utils.deterministic.fill_uninitialized_memory
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", HALF_AND_SINGLE.values(), ids=HALF_AND_SINGLE.keys())
@pytest.mark.parametrize("case", [*CASES, MANY_TILES], ids=lambda case: case.name)
def test_matches_the_reference(case: Case, dtype: torch.dtype, layout: str, path: str) -> None:
    def ours(x, T, S, b):
        return kron_linear(x, T, S, b, out_features=case.out_features, layout=layout, path=path, backend="triton")

    # The interpreter cuts bfloat16 off where a GPU rounds it, which doubles the error of the one intermediate.
    slack = 4.0 if dtype == torch.bfloat16 and DEVICE == "cpu" else 3.0
    operands = [t.to(DEVICE) for t in case.operands(dtype)]
    assert_as_good_as_dense(ours, reference_linear(case, layout), operands, slack)


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


@pytest.mark.parametrize(
    ("dtype", "path", "message"),
    [
        (torch.float64, "templates_first", "too little for float64"),
        (torch.float32, "panel", "panel is a library product"),
        (torch.float32, "on_the_fly", "not written yet"),
    ],
)
def test_what_triton_refuses(dtype: torch.dtype, path: str, message: str) -> None:
    operands = Case("refused", (3,), 2, 2, 2, 4, 4).operands(dtype)
    with pytest.raises(RuntimeError, match=message):
        kron_linear(*(t.to(DEVICE) for t in operands), path=path, backend="triton")


def test_auto_leaves_kernels_that_no_gpu_has_timed_alone() -> None:
    chosen = plan(4096, (4, 16, 16), (64, 64), torch.float32, DEVICE)
    assert chosen.backend == "torch"
    assert "never timed on a GPU" in chosen.explain()
