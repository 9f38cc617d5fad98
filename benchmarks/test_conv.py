"""``weit.KronConv2d`` beside ``nn.Conv2d`` over the suite."""

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

import weit
from benchmarks.duel import duel
from benchmarks.suite import SuiteShape, load

CASES = [
    pytest.param(shape, phase, id=f"{shape.name}-{phase}")
    for shape in load("conv2d", cpu=True)
    for phase in shape.phases
]


@pytest.mark.parametrize(("suite", "phase"), CASES)
def test_kron_conv2d(benchmark: BenchmarkFixture, suite: SuiteShape, phase: str) -> None:
    s = suite.shape
    kernel = s.kernel[0]
    layer = weit.KronConv2d(
        s.in_features, s.out_features, kernel, padding=kernel // 2, templates=s.N, template_shape=(s.p, s.q)
    )
    duel(benchmark, suite, phase, layer, layer.to_conv(), torch.randn(suite.batch, s.in_features, *suite.size))
