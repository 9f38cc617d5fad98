"""One contender beside the dense layer: same input, same result checked first, rounds interleaved."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from time import perf_counter

import torch
from pytest_benchmark.fixture import BenchmarkFixture
from torch import Tensor, nn

from benchmarks.suite import SuiteShape


def step(module: nn.Module, x: Tensor, dy: Tensor, phase: str) -> Callable[[], object]:
    """A forward pass without gradients, or a forward and backward pass with all of them."""
    if phase == "forward":

        def forward() -> object:
            with torch.no_grad():
                return module(x)

        return forward

    leaves = [x.requires_grad_(), *module.parameters()]
    return lambda: torch.autograd.grad(module(x), leaves, dy)


def check(module: nn.Module, dense: nn.Module, x: Tensor) -> None:
    """The contender must compute what the dense layer with its own weight computes."""
    with torch.no_grad():
        expected, got = dense(x), module(x)
    error = float((got - expected).norm() / expected.norm())
    assert error < 1e-4, f"relative error {error:.1e}: not timed"


def duel(
    benchmark: BenchmarkFixture, suite: SuiteShape, phase: str, module: nn.Module, dense: nn.Module, x: Tensor
) -> None:
    """Time ``module`` with pytest-benchmark and ``dense`` between its rounds; note the ratio and its limit."""
    check(module, dense, x)
    dy = torch.randn_like(dense(x))
    ours, theirs = step(module, x, dy, phase), step(dense, x, dy, phase)
    dense_seconds: list[float] = []

    def round_of_dense() -> None:
        theirs()  # untimed: brings the dense layer's operands back into cache
        start = perf_counter()
        theirs()
        dense_seconds.append(perf_counter() - start)
        ours()

    start = perf_counter()
    theirs()
    rounds = min(200, max(9, int(0.7 / (perf_counter() - start + 1e-9) / 4)))
    benchmark.group = f"{phase}: {suite.name}"
    benchmark.pedantic(ours, setup=round_of_dense, rounds=rounds, warmup_rounds=2)
    dense_median = statistics.median(dense_seconds[2:])
    benchmark.extra_info.update(
        shape=suite.name,
        phase=phase,
        rows=suite.rows,
        dense_seconds=dense_median,
        limit=suite.limit(phase),
        ratio=dense_median / benchmark.stats.stats.median,
        threads=torch.get_num_threads(),
    )
