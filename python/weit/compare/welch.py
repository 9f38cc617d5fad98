"""Whether two starts differ by more than their seeds do."""

from __future__ import annotations

from collections.abc import Sequence
from math import atan, cos, exp, lgamma, pi, sqrt
from statistics import fmean, variance

LEVEL = 0.05
"""Of samples that do not differ, this share at most is told apart."""

_POINTS = 2000


def differ(one: Sequence[float], other: Sequence[float]) -> bool:
    """Whether Welch's t-test tells the means of two samples apart at 95 %.

    One value has no spread, so it is told apart from nothing; samples without any spread differ if their values do.

    Source: Welch 1947, "The generalization of 'Student's' problem when several different population variances are
    involved".
    """
    if min(len(one), len(other)) < 2:
        return False
    return p_value(one, other) < LEVEL


def p_value(one: Sequence[float], other: Sequence[float]) -> float:
    """How probable means this far apart, or farther, are if there is no difference; two values a sample at least.

    Not SciPy's, which nothing else here needs.
    """
    shares = [variance(sample) / len(sample) for sample in (one, other)]
    apart, noise = abs(fmean(one) - fmean(other)), sum(shares)
    if noise == 0:
        return float(apart == 0)
    weights = [(share / noise) ** 2 / (len(sample) - 1) for share, sample in zip(shares, (one, other), strict=True)]
    return _beyond(apart / sqrt(noise), 1 / sum(weights))


def _beyond(t: float, freedom: float) -> float:
    """Probability of more than ``t`` on either side of Student's distribution, with ``t = √freedom tan x`` an integral of
    powers of cosines.
    """
    end = atan(t / sqrt(freedom))
    within = sum(cos((i + 0.5) * end / _POINTS) ** (freedom - 1) for i in range(_POINTS)) * end / _POINTS
    whole = sqrt(pi) / 2 * exp(lgamma(freedom / 2) - lgamma((freedom + 1) / 2))
    return max(0.0, 1 - within / whole)
