"""The memory model agrees with what is measured: state and saved tensors to a thousandth, peaks to 10 %."""

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

import weit
from benchmarks.memory import budgets, stacks
from benchmarks.memory.measure import Memory, measure, saved_bytes
from benchmarks.memory.model import Kron, Sizes, layer_memory, stack_memory

PEAK = 0.1
KRONS = [None, Kron(4, 32, 32)]
IDS = ["dense", "bank"]


def compare(found: Memory, predicted: Memory) -> None:
    for part in ("parameters", "gradients", "optimiser", "saved"):
        assert getattr(predicted, part) == pytest.approx(getattr(found, part), rel=1e-3), part
    assert predicted.peak == pytest.approx(found.peak, rel=PEAK)


@pytest.mark.parametrize("kron", KRONS, ids=IDS)
def test_one_layer(kron: Kron | None) -> None:
    out, inn, rows = 512, 256, 300
    module = nn.Linear(inn, out)
    if kron is not None:
        module = weit.KronLinear(inn, out, templates=kron.N, template_shape=(kron.p, kron.q))
    x = torch.randn(rows, inn, requires_grad=True)

    def loss() -> torch.Tensor:
        x.grad = None
        return module(x).sum()

    compare(measure(module, loss), layer_memory((out, inn), rows, kron))


@pytest.mark.parametrize("gated", [False, True], ids=["gelu", "gated"])
@pytest.mark.parametrize("kron", KRONS, ids=IDS)
def test_a_stack(kron: Kron | None, gated: bool) -> None:
    sizes = Sizes(3, 256, 704 if gated else 1024, 4, 4, 65, gated=gated, bias=not gated)
    stack = stacks.build(sizes, kron)
    x = torch.randn(sizes.batch, sizes.tokens, sizes.width)
    compare(measure(stack, lambda: stack(x).sum()), stack_memory(sizes, kron))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_an_optimizer_that_takes_all_parameters_at_a_time_as_on_a_gpu(dtype: torch.dtype) -> None:
    sizes = Sizes(4, 256, 704, 4, 1, 33, gated=True, bias=False, dtype=dtype)
    stack = stacks.build(sizes, None)
    x = torch.randn(sizes.batch, sizes.tokens, sizes.width, dtype=dtype)
    found = measure(stack, lambda: stack(x).sum(), foreach=True)
    assert found.peak > 1.1 * stack_memory(sizes, None).peak
    compare(found, stack_memory(sizes, None, "cuda"))


@pytest.mark.parametrize("kron", KRONS, ids=IDS)
def test_counting_needs_no_memory_and_agrees(kron: Kron | None) -> None:
    sizes = Sizes(2, 128, 344, 4, 2, 17, gated=True, bias=False)
    counted = []
    with FakeTensorMode():
        stack = stacks.build(sizes, kron)
        x = torch.randn(sizes.batch, sizes.tokens, sizes.width)
        counted.append(saved_bytes(stack, lambda: stack(x).sum()))
    stack = stacks.build(sizes, kron)
    x = torch.randn(sizes.batch, sizes.tokens, sizes.width)
    counted.append(saved_bytes(stack, lambda: stack(x).sum()))
    assert counted[0] == counted[1] == pytest.approx(stack_memory(sizes, kron).saved, rel=1e-3)


@pytest.mark.parametrize("limit", [0, 1, 7, 100, 5000])
def test_largest_finds_the_last_that_fits(limit: int) -> None:
    assert budgets.largest(lambda n: n <= limit, 1000) == min(limit, 1000)


def test_more_memory_fits_more_and_a_bank_fits_more_than_dense_weights() -> None:
    rows = budgets.rows()
    assert [row["budget_gb"] for row in rows] == list(budgets.BUDGETS_GB)
    for key in ("depth_dense", "depth_kron", "width_dense", "width_kron"):
        assert [row[key] for row in rows] == sorted({row[key] for row in rows}), key
    assert all(row["depth_dense"] < row["depth_kron"] and row["width_dense"] < row["width_kron"] for row in rows)
