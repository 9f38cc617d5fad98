"""Memory of training, measured where it fits a stated budget, else counted on tensors without storage; and predicted."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture
from torch._subclasses.fake_tensor import FakeTensorMode

import weit
from benchmarks.memory import budgets, stacks
from benchmarks.memory.measure import Memory, measure, saved_bytes
from benchmarks.memory.model import Kron, Sizes, layer_memory, stack_memory
from benchmarks.options import Options
from benchmarks.record import Record

LAYER = (3072, 768), Kron(8, 192, 192)  # deit_b_fc1 of the suite
VIT_B = Sizes(12, 768, 3072, 12, 2, 197)
VIT_BANK = Kron(8, 48, 48)
DECODER = replace(budgets.DECODER, tokens=2048)
CPU_BUDGET = 4 << 30  # bytes that a measured step may take; what needs more is counted


@pytest.mark.parametrize("bank", [False, True], ids=["dense", "bank"])
def test_layer(benchmark: BenchmarkFixture, bank: bool, options: Options, record: Record) -> None:
    (out, inn), kron = LAYER
    rows = 64 if options.quick else 1576
    kind: dict[str, Any] = {"device": options.device, "dtype": options.dtype}
    if bank:
        module = weit.KronLinear(inn, out, templates=kron.N, template_shape=(kron.p, kron.q), **kind)
    else:
        module = torch.nn.Linear(inn, out, **kind)
    x = torch.randn(rows, inn, requires_grad=True, **kind)

    def loss() -> torch.Tensor:
        x.grad = None
        return module(x).sum()

    benchmark.group = "memory: one layer, forward and backward"
    benchmark.pedantic(lambda: loss().backward(), rounds=3, warmup_rounds=1)
    predicted = layer_memory((out, inn), rows, kron if bank else None, options.dtype, options.device)
    title = f"one layer {out} x {inn}, {rows} rows"
    record.memory.append(_row(title, options, kron if bank else None, measure(module, loss), predicted, "measured"))


@pytest.mark.parametrize("bank", [False, True], ids=["dense", "bank"])
@pytest.mark.parametrize("name", ["vit_b", "decoder"])
def test_stack(name: str, bank: bool, options: Options, record: Record) -> None:
    if name == "vit_b":
        title, sizes, kron = "the 12 blocks of ViT-B", replace(VIT_B, dtype=options.dtype), VIT_BANK
    else:
        title, sizes, kron = "a decoder of 7 · 10⁹ weights", DECODER, budgets.BANK
    if options.quick:
        sizes = replace(sizes, depth=2, tokens=32, width=256, hidden=688, heads=4)
        kron = Kron(kron.N, 16, 16)
    chosen = kron if bank else None
    predicted = stack_memory(sizes, chosen, options.device)
    budget = CPU_BUDGET if options.cpu else int(0.9 * torch.cuda.get_device_properties(0).total_memory)
    fits = predicted.peak is not None and predicted.peak <= budget
    found = _measured(sizes, chosen, options.device) if fits else _counted(sizes, chosen)
    title = f"{title}: depth {sizes.depth}, width {sizes.width}, {sizes.batch} x {sizes.tokens} tokens"
    how = "measured" if fits else f"counted, as the step needs more than {budget / 2**30:.0f} GiB"
    record.memory.append(_row(title, replace(options, dtype=sizes.dtype), chosen, found, predicted, how))


def test_budgets(record: Record) -> None:
    record.budgets.extend(budgets.rows())


def _measured(sizes: Sizes, kron: Kron | None, device: str) -> Memory:
    stack = stacks.build(sizes, kron).to(device)
    x = torch.randn(sizes.batch, sizes.tokens, sizes.width, device=device, dtype=sizes.dtype)
    return measure(stack, lambda: stack(x).sum())


def _counted(sizes: Sizes, kron: Kron | None) -> Memory:
    """The same on fake tensors, which know their size and have no storage; the peak stays unknown."""
    with FakeTensorMode():
        stack = stacks.build(sizes, kron)
        x = torch.randn(sizes.batch, sizes.tokens, sizes.width, dtype=sizes.dtype)
        parameters = sum(p.numel() * p.element_size() for p in stack.parameters())
        return Memory(parameters, parameters, 2 * parameters, saved_bytes(stack, lambda: stack(x).sum()))


def _row(title: str, options: Options, kron: Kron | None, found: Memory, predicted: Memory, how: str) -> dict[str, Any]:
    bank = "dense" if kron is None else f"N = {kron.N}, {kron.p} x {kron.q}"
    dtype = str(options.dtype).removeprefix("torch.")
    return {"what": title, "weights": bank, "dtype": dtype, "how": how, "found": found.rows(),
            "predicted": predicted.rows()}  # fmt: skip
