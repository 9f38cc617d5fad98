"""Partial sums added up in one launch, and how many of them there are."""

from collections.abc import Iterator

import pytest
import torch

pytest.importorskip("triton", reason="Triton is not installed")

import triton

from tests.weit_kernels.cases import relative_error
from tests.weit_kernels.triton.direct import DEVICE, poisoned
from weit_kernels import estimates, plan
from weit_kernels.triton import PATHS, sums, weight_grads
from weit_kernels.triton.sums import sum_parts


@pytest.fixture(autouse=True)
def poisoned_memory() -> Iterator[None]:
    with poisoned():
        yield


def random(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape))).to(DEVICE)


@pytest.mark.parametrize("adds", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("count", [1, 3, 256, 257, 600])
def test_parts_of_one_total(count: int, dtype: torch.dtype, adds: bool) -> None:
    """Fewer parts than a tile holds and more, the total a slice whose rows lie apart."""
    parts, whole = random(count, 3, 7), random(3, 19).to(dtype)
    before, total = whole.clone(), whole[:, 5:12]
    expected = parts.double().sum(0) + (total.double() if adds else 0)
    sum_parts((parts, total, adds))
    assert relative_error(total, expected) < torch.finfo(dtype).eps + 1e-6
    assert torch.equal(whole[:, :5], before[:, :5])
    assert torch.equal(whole[:, 12:], before[:, 12:])


@pytest.mark.parametrize(
    ("one", "two"), [((2, 4, 1500), (300, 4, 6)), ((40, 1, 5), (1, 1, 1)), ((17, 5, 900), (17, 5, 900))]
)
def test_two_totals_at_once(one: tuple[int, ...], two: tuple[int, ...]) -> None:
    """Of one program each and of many, one of them added to."""
    first, second = random(*one), random(*two)
    total, other = torch.empty(one[1:], device=DEVICE, dtype=torch.bfloat16), random(*two[1:])
    expected = other.double() + second.double().sum(0)
    sum_parts((first, total, False), (second, other, True))
    assert relative_error(total, first.double().sum(0)) < torch.finfo(torch.bfloat16).eps
    assert relative_error(other, expected) < 1e-6


@triton.jit
def _one_program(parts, total, program, count, size):
    sums._sum(parts, total, program, 1, count, size, size, 1, 1024, False, "ieee")


def test_offsets_beyond_32_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    """The last of 2**21 + 1 programs; only what it touches takes memory."""
    if DEVICE == "cuda" and torch.cuda.mem_get_info()[0] < 24 << 30:
        pytest.skip("on a GPU all 9 GB are taken, and another worker may take as much")
    monkeypatch.setattr(torch.utils.deterministic, "fill_uninitialized_memory", False)
    count, size = (1 << 31) + 1000, 1 << 20
    parts, total = (torch.empty(count, dtype=torch.float16, device=DEVICE) for _ in range(2))
    parts[-1000:], total[-1000:] = random(1000).half(), float("nan")
    _one_program[(1,)](parts, total, 1 << 21, count, size)
    assert torch.equal(total[-1000:], parts[-1000:])


@pytest.mark.parametrize("path", ["templates_first", "scalers_first"])
@pytest.mark.parametrize("sizes", [(1, 2, 70, 3, 40), (5, 3, 40, 70, 17), (16, 20, 3, 130, 5)], ids=str)
def test_sums_of_large_factors_are_planned(sizes: tuple[int, ...], path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """They exceed the bound on what splitting tokens may take, here none at all, and exist all the same."""
    held: list[int] = []
    monkeypatch.setattr(weight_grads, "GPU_BLOCK_BYTES", 1)
    monkeypatch.setattr(estimates, "GPU_BLOCK_BYTES", 1)
    monkeypatch.setattr(
        weight_grads, "sum_parts", lambda *sums: held.append(sum(s[0].nbytes for s in sums if s[0] is not None))
    )
    N, m, n, p, q = sizes
    choice = {"path": path, "backend": "triton"}
    planned = plan(9, (N, m, n), (N, p, q), torch.bfloat16, DEVICE, **choice).workspace_bytes
    dy, x, T, S = (random(*shape).bfloat16() for shape in ((9, m * p), (9, n * q), (N, p, q), (N, m, n)))
    PATHS[path].linear_backward(dy, x, T, S, [False, True, True])
    assert planned / 4 < sum(held) <= planned


@pytest.mark.parametrize(("dtype", "least"), [(torch.float32, 16), (torch.bfloat16, 1)])
def test_float32_has_a_partial_sum_for_each_term_of_a_token(
    dtype: torch.dtype, least: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However few programs fill the machine: else its chains of additions were longer than a dense layer's."""
    seen = []

    def watched(*sums: tuple[torch.Tensor | None, torch.Tensor | None, bool]) -> None:
        seen.extend(parts.shape[0] for parts, _, _ in sums if parts is not None)
        sum_parts(*sums)

    monkeypatch.setattr(weight_grads, "programs", lambda x: 1)
    monkeypatch.setattr(weight_grads, "sum_parts", watched)
    T, S, x, dy = (random(*shape).to(dtype) for shape in ((2, 16, 16), (2, 16, 16), (64, 256), (64, 256)))
    weight_grads.weight_grads(dy, x, T, S, [True, False])
    assert seen == [least]
