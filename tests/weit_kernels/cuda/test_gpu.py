"""The CUDA backend on a GPU, through the public call; skipped where there is none, or no extension with it."""

import pytest
import torch

from tests.weit_kernels.cases import (
    CASES,
    DTYPES,
    Case,
    assert_as_good_as_dense,
    reference_linear,
)
from weit_kernels import cuda, kron_linear

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(bool(cuda.why_not()), reason=cuda.why_not() or "the extension has CUDA"),
]

NARROW = {name: dtype for name, dtype in DTYPES.items() if dtype in cuda.DTYPES}
# Several tiles of everything, and the shapes that the kernels are made for.
LARGE = [
    Case("many_tiles", (300,), 3, 20, 20, 70, 41, cut_out=5, cut_in=9),
    Case("vectors", (1000,), 8, 16, 16, 64, 128),
    Case("gradients_by_the_kernel", (1000,), 4, 16, 16, 256, 256),
    Case("decode_4096", (1,), 4, 16, 16, 256, 256),
    Case("decode_8192", (1,), 8, 32, 32, 256, 256),
    Case("few_rows", (64,), 4, 16, 16, 256, 256),
]


def ours(case: Case):
    def function(x, T, S, b):
        return kron_linear(x, T, S, b, out_features=case.out_features, path="templates_first", backend="cuda")

    return function


@pytest.mark.parametrize("dtype", NARROW.values(), ids=NARROW.keys())
@pytest.mark.parametrize("case", [*CASES, *LARGE], ids=lambda case: case.name)
def test_matches_the_reference(case: Case, dtype: torch.dtype) -> None:
    operands = [t.cuda() for t in case.operands(dtype)]
    assert_as_good_as_dense(ours(case), reference_linear(case, "block"), operands)


@pytest.mark.parametrize("case", LARGE, ids=lambda case: case.name)
def test_every_run_gives_the_same(case: Case) -> None:
    leaves = [t.cuda().requires_grad_() for t in case.operands(torch.bfloat16)]

    def run() -> list[torch.Tensor]:
        y = ours(case)(*leaves)
        return [y.detach(), *torch.autograd.grad(y.float().square().mean(), leaves[1:3])]

    for first, second in zip(run(), run(), strict=True):
        assert torch.equal(first, second)


def test_kernels_of_one_stream_wait_for_each_other() -> None:
    """Few rows start early: a chain of layers must still read what the layer before wrote."""
    case = Case("square", (1,), 4, 16, 16, 64, 64)
    x, T, S, b = (t.cuda() for t in case.operands(torch.float16))
    layer = ours(case)
    y = z = x
    for _ in range(20):
        y = layer(y, T, S, b)
    for _ in range(20):
        z = layer(z, T, S, b)
        torch.cuda.synchronize()
    assert torch.equal(y, z)


def test_few_rows_in_a_captured_graph() -> None:
    """Launches that may start early, on two streams that fork and join."""
    case = Case("square", (1,), 4, 16, 16, 64, 64)
    x, T, S, b = (t.cuda() for t in case.operands(torch.float16))
    layer = ours(case)
    side = torch.cuda.Stream()

    def forked() -> torch.Tensor:
        here = layer(x, T, S, b)
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            there = layer(here, T, S, b)
        here = layer(here, T, S, None)
        torch.cuda.current_stream().wait_stream(side)
        return layer(here + there, T, S, b)

    expected = forked()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y = forked()
    for _ in range(20):
        y.zero_()
        graph.replay()
        assert torch.equal(y, expected)


def test_many_rows_use_the_kernel_of_the_device() -> None:
    """A tensor map that the driver refuses would fall back without a word."""
    case = Case("aligned", (1024,), 4, 16, 16, 128, 128)
    operands = [t.cuda() for t in case.operands(torch.bfloat16)]
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        ours(case)(*operands)
        torch.cuda.synchronize()
    names = " ".join(event.key for event in profile.key_averages())
    if torch.cuda.get_device_capability() == (9, 0):
        assert "weit::cuda" in names
        assert "Tile<__nv_bfloat16, 4, " in names, names
