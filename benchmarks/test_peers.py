"""Other packages that compute the same function, beside ``nn.Linear``, and this one for comparison in the same run."""

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from benchmarks.contenders import AUTO, CONTENDERS, DENSE, PEERS, Contender
from benchmarks.duel import duel
from benchmarks.options import Options
from benchmarks.record import Record
from benchmarks.suite import SuiteShape

BESIDE = (DENSE, *(contender for contender in CONTENDERS if contender.name == AUTO), *PEERS)
# On a CPU one of each kind, unless --shapes says otherwise: many and few scaler rows, many templates, few rows of x.
# The dearest comes last: peers that take a call a term take minutes for its 64.
CPU_SHAPES = ("square_768", "policy_1024", "decode_4096_b16", "deit_b_fc1", "llm_4096", "deit_b_fc1_many")


@pytest.mark.duels("linear", BESIDE, CPU_SHAPES)
def test_peers(
    benchmark: BenchmarkFixture, suite: SuiteShape, phase: str, contender: Contender, options: Options, record: Record
) -> None:
    duel(benchmark, "peers", suite, phase, contender, options, record)
