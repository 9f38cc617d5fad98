"""This package's paths and backends beside ``nn.Conv2d`` over the suite."""

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from benchmarks.contenders import DENSE, OURS, Contender
from benchmarks.duel import duel
from benchmarks.options import Options
from benchmarks.record import Record
from benchmarks.suite import SuiteShape


@pytest.mark.duels("conv2d", (DENSE, *OURS), ())
def test_conv(
    benchmark: BenchmarkFixture, suite: SuiteShape, phase: str, contender: Contender, options: Options, record: Record
) -> None:
    duel(benchmark, "conv2d", suite, phase, contender, options, record)
