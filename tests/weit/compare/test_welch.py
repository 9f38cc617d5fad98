"""Telling two starts apart."""

from random import Random

import pytest

from weit.compare.welch import differ, p_value


@pytest.mark.parametrize(("one", "other"), [(2, 2), (2, 5), (3, 3), (10, 4)])
def test_probabilities_are_those_of_scipy(one: int, other: int) -> None:
    stats = pytest.importorskip("scipy.stats")
    random = Random(0)
    for apart in (0.0, 1.0, 5.0, 1e3):
        ours = [random.gauss(0, 1) for _ in range(one)]
        theirs = [random.gauss(apart, 3) for _ in range(other)]
        assert p_value(ours, theirs) == pytest.approx(stats.ttest_ind(ours, theirs, equal_var=False).pvalue, abs=1e-4)


@pytest.mark.parametrize("seeds", [2, 3])
def test_what_is_alike_is_seldom_told_apart(seeds: int) -> None:
    random = Random(0)
    samples = [[[random.gauss(0, 1) for _ in range(seeds)] for _ in range(2)] for _ in range(500)]
    assert sum(differ(*pair) for pair in samples) / len(samples) < 0.06


def test_without_spread_any_difference_counts_but_for_one_seed() -> None:
    assert differ([0.9, 0.9], [0.8, 0.8])
    assert not differ([0.9, 0.9], [0.9, 0.9])
    assert not differ([0.9001], [0.9])
    assert not differ([0.9], [0.8, 0.8])
