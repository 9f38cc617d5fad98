"""This package's paths and backends beside ``nn.Linear`` over the suite."""

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from benchmarks.contenders import DENSE, OURS, Contender
from benchmarks.duel import duel
from benchmarks.options import Options
from benchmarks.record import Record
from benchmarks.suite import SuiteShape


@pytest.mark.duels("linear", (DENSE, *OURS), ())
def test_linear(
    benchmark: BenchmarkFixture, suite: SuiteShape, phase: str, contender: Contender, options: Options, record: Record
) -> None:
    duel(benchmark, "linear", suite, phase, contender, options, record)
