"""``weit.KronLinear`` beside ``nn.Linear`` over the suite."""

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

import weit
from benchmarks.duel import duel
from benchmarks.suite import SuiteShape, load

CASES = [
    pytest.param(shape, phase, id=f"{shape.name}-{phase}")
    for shape in load("linear", cpu=True)
    for phase in shape.phases
]


@pytest.mark.parametrize(("suite", "phase"), CASES)
def test_kron_linear(benchmark: BenchmarkFixture, suite: SuiteShape, phase: str) -> None:
    s = suite.shape
    layer = weit.KronLinear(s.in_features, s.out_features, templates=s.N, template_shape=(s.p, s.q))
    duel(benchmark, suite, phase, layer, layer.to_linear(), torch.randn(suite.rows, s.in_features))
