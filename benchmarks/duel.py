"""One contender beside the dense layer: same input, the result checked first, rounds interleaved."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from functools import lru_cache
from time import perf_counter
from typing import Any

import torch
from pytest_benchmark.fixture import BenchmarkFixture

import weit_kernels
from benchmarks import pace
from benchmarks.contenders import AUTO, DENSE, Contender
from benchmarks.operands import Operands, check, errors, make_step, operands
from benchmarks.options import Options
from benchmarks.record import Record
from benchmarks.suite import SuiteShape

Step = Callable[[], object]
MOST_ROUNDS = 50
# Times as many rounds and as long, at most, for what the package chooses: bursts of others last half a second.
DECIDES = 4
FEWEST_ROUNDS, LONG = 3, 0.4  # of steps longer than so many seconds
SHORT = 0.02  # seconds; longer steps leave nothing in cache that a call beforehand could bring back


def duel(
    benchmark: BenchmarkFixture,
    kind: str,
    suite: SuiteShape,
    phase: str,
    contender: Contender,
    options: Options,
    record: Record,
) -> None:
    """Time ``contender`` and, between its rounds, the dense layer; note the ratio, the spread and the limit."""
    who = {"suite": kind, "shape": suite.name, "phase": phase, "contender": contender.name}
    if reason := contender.why_not(suite, phase, options.dtype, options.device):
        record.skip(who, reason)
    given = operands(suite, options.device, options.dtype)
    try:
        dense, dense_error = _dense(given, phase)
        step = make_step(contender.build(given), given, phase)
        error = check(step(), given, dense_error)
    except Exception as failure:  # a contender may raise anything, and the others shall be timed
        record.fail(who, failure)
    s = suite.shape
    benchmark.group = f"{kind} {phase}: {suite.name}"
    benchmark.extra_info.update(
        **who,
        rows=suite.rows,
        sizes={"N": s.N, "m": s.m, "n": s.n, "p": s.p, "q": s.q, "kernel": list(s.kernel)},
        limit=suite.limit(phase),
        error=error,
        dense_error=dense_error,
        about=contender.about,
    )
    if contender.name == AUTO:
        benchmark.extra_info["plan"] = _plan(given, phase)
    ours, theirs = synchronised(step, options.device), synchronised(dense, options.device)
    timings = interleave(benchmark, ours, theirs, options, DECIDES if contender.name == AUTO else 1)
    benchmark.extra_info.update(timings)


def interleave(
    benchmark: BenchmarkFixture, ours: Step, theirs: Step, options: Options, times: int = 1
) -> dict[str, Any]:
    """Time ``ours`` with pytest-benchmark and ``theirs`` before each of its rounds, ``times`` as long as usual.

    Returns:
        Medians of both in seconds, and the median of the rounds' ratios: neighbours in time meet the same machine, so that
        slow drifts cancel. On a CPU rounds of quiet moments alone count (``pace``), or the quietest if there are too few;
        ``counted`` says how many, ``gflops`` at what pace and ``handshake`` after what seconds for one: beside others, or on
        cores far apart, both layers suffer, not equally. The interquartile ranges are of the rounds that count.
    """
    slices = pace.Slices(0 if options.quick else times * pace.PATIENCE) if options.cpu else None
    theirs_seconds: list[float] = []
    once = _seconds(theirs) + _seconds(ours)
    if once <= LONG:  # the first calls pay for what later ones keep
        once = _seconds(theirs) + _seconds(ours)
    short = once < SHORT

    def a_round_of_theirs() -> None:
        if slices is not None:
            slices.begin_round()
        if short:
            theirs()  # brings its operands back into cache
        theirs_seconds.append(_seconds(theirs))
        if short:
            ours()

    least = FEWEST_ROUNDS if once > LONG else options.least_rounds
    rounds = min(times * MOST_ROUNDS, max(least + times - 1, int(times * options.seconds / once / (2 if short else 1))))
    benchmark.pedantic(ours, setup=a_round_of_theirs, rounds=rounds)
    ours_seconds = benchmark.stats.stats.data
    counted, found = list(range(rounds)), {}
    if slices is not None:
        counted, found["gflops"], found["handshake"] = slices.quiet(least)
        found["counted"] = len(counted)
    pairs = [(theirs_seconds[i], ours_seconds[i]) for i in counted]
    dense, seconds = zip(*pairs, strict=True)
    return {
        **found,
        "seconds": statistics.median(seconds),
        "dense_seconds": statistics.median(dense),
        "iqr": _interquartile_range(seconds),
        "dense_iqr": _interquartile_range(dense),
        "ratio": statistics.median(d / o for d, o in pairs),
    }


def synchronised(step: Step, device: str) -> Step:
    """The step, on a GPU up to the end of its last kernel; its outputs are dropped, so that none live between rounds."""

    def timed() -> None:
        step()
        if device != "cpu":
            torch.cuda.synchronize()

    return timed


@lru_cache(maxsize=1)
def _dense(given: Operands, phase: str) -> tuple[Step, float]:
    """The dense layer's step and its error, made once for all contenders of a shape."""
    step = make_step(DENSE.build(given), given, phase)
    return step, max(errors(step(), given).values())


def _seconds(step: Step) -> float:
    start = perf_counter()
    step()
    return perf_counter() - start


def _interquartile_range(numbers: Sequence[float]) -> float:
    low, _, high = statistics.quantiles(numbers, n=4)
    return high - low


def _plan(given: Operands, phase: str) -> str:
    sizes = (given.suite.rows, tuple(given.S.shape), tuple(given.T.shape), given.dtype, given.x.device)
    chosen = weit_kernels.plan(*sizes, needs_grad=phase == "train")
    return f"{chosen.path}_{chosen.backend}"
