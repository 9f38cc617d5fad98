"""One contender beside the dense layer: same input, the result checked first, rounds interleaved."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from math import ceil
from time import perf_counter
from typing import Any

import torch
from pytest_benchmark.fixture import BenchmarkFixture

import weit_kernels
from benchmarks.contenders import AUTO, DENSE, Contender
from benchmarks.operands import Operands, check, errors, make_step, operands
from benchmarks.options import Options
from benchmarks.record import Record
from benchmarks.suite import SuiteShape
from benchmarks.tables import SHORT

Step = Callable[[], object]
MOST_ROUNDS = 200
LONG = 0.15  # seconds; longer steps have fewer rounds
# What a tenth of a visit's rounds do not exceed, in its fastest visit, is what a layer takes on a CPU: other users of the
# machine slow rounds down, for seconds or minutes at a time, and none makes one faster. docs/speed.md says more.
FASTEST = 0.1


def duel(
    benchmark: BenchmarkFixture,
    kind: str,
    suite: SuiteShape,
    phase: str,
    contender: Contender,
    options: Options,
    record: Record,
) -> None:
    """Time ``contender`` and, between its rounds, the dense layer; note the ratio, the spread and the limit.

    The result is checked before the first rounds; later visits add rounds.
    """
    who = {"suite": kind, "shape": suite.name, "phase": phase, "contender": contender.name}
    if reason := contender.why_not(suite, phase, options.dtype, options.device):
        record.skip(who, reason)
    given = operands(suite, options.device, options.dtype)
    checks = benchmark.fullname not in record.visits
    try:
        dense = _dense(given, phase)
        step = make_step(contender.build(given), given, phase)
        outputs = step()  # compiled ones take seconds for their first call, also on later visits
        if checks:
            dense_error = _dense_error(given, phase)
            benchmark.extra_info.update(error=check(outputs, given, dense_error), dense_error=dense_error)
        else:
            dense()  # most likely made anew, as the contender is
        del outputs
    except Exception as failure:  # a contender may raise anything, and the others shall be timed
        record.fail(who, failure)
    s = suite.shape
    benchmark.group = f"{kind} {phase}: {suite.name}"
    benchmark.extra_info.update(
        **who,
        rows=suite.rows,
        sizes={"N": s.N, "m": s.m, "n": s.n, "p": s.p, "q": s.q, "kernel": list(s.kernel)},
        limit=suite.limit(phase),
        about=contender.about,
    )
    if contender.name == AUTO:
        benchmark.extra_info["plan"] = _plan(given, phase)
    ours, theirs = synchronised(step, options.device), synchronised(dense, options.device)
    benchmark.extra_info.update(interleave(benchmark, ours, theirs, options, record, warm=warms(suite, phase)))


def warms(suite: SuiteShape, phase: str) -> bool:
    """Whether ``interleave`` is to bring operands of a shape back into cache."""
    return suite.dense_flops(phase) < SHORT


def interleave(
    benchmark: BenchmarkFixture, ours: Step, theirs: Step, options: Options, record: Record, *, warm: bool = False
) -> dict[str, Any]:
    """Time ``ours`` with pytest-benchmark and ``theirs`` before each of its rounds.

    Both must have been called before: first calls pay for what later ones keep. ``warm``: each is called right before it is
    timed, too, which brings its operands back into cache; all visits of a figure, and all contenders of a shape, do alike.

    Returns:
        ``of_visits`` of this visit and all before, each by what the fastest tenth of its rounds take on a CPU, by medians on
        a GPU, where clocks rise and fall; beside them medians and interquartile ranges of all rounds. Nothing where
        pytest-benchmark was told not to measure.
    """
    if benchmark.disabled:  # by --benchmark-disable
        ours()
        return {}
    visits = record.visits.setdefault(benchmark.fullname, [])
    theirs_seconds: list[float] = []
    tried = () if visits else (_seconds(theirs), _seconds(ours))
    once = sum(tried or map(min, zip(*visits[0], strict=True)))

    def a_round_of_theirs() -> None:
        if warm:
            theirs()
        theirs_seconds.append(_seconds(theirs))
        if warm:
            ours()

    rounds = min(MOST_ROUNDS, max(1 + (once <= LONG), int(options.seconds / once / (2 if warm else 1))))
    benchmark.pedantic(ours, setup=a_round_of_theirs, rounds=rounds)
    ours_seconds = benchmark.stats.stats.data
    visits.append([*zip(theirs_seconds, ours_seconds, strict=True)])
    if tried and once > LONG < sum(visits[-1][0]):  # as good as a round, and dear, if the time was its own and no stall
        visits[-1].insert(0, tried)
    dense, seconds = zip(*(pair for visit in visits for pair in visit), strict=True)
    ours_seconds[:] = seconds  # pytest-benchmark's own figures, too, are of all visits
    of = fastest if options.cpu else statistics.median
    by_visit = [
        {"rounds": len(visit), "dense_seconds": of([d for d, _ in visit]), "seconds": of([o for _, o in visit])}
        for visit in visits
    ]
    return {
        **of_visits(by_visit),
        "median": statistics.median(seconds),
        "dense_median": statistics.median(dense),
        "iqr": _interquartile_range(seconds),
        "dense_iqr": _interquartile_range(dense),
        **({"fastest": FASTEST} if options.cpu else {}),
    }


def of_visits(by_visit: Sequence[dict[str, Any]], of: Callable[[list[float]], float] = min) -> dict[str, Any]:
    """Seconds, ours and the dense layer's, each of its fastest visit or what else ``of`` says, and how many times as fast
    ours are by that; how many rounds and visits there were, and the visits.
    """
    seconds, dense = (of([visit[which] for visit in by_visit]) for which in ("seconds", "dense_seconds"))
    rounds = sum(visit["rounds"] for visit in by_visit)
    return {
        "seconds": seconds,
        "dense_seconds": dense,
        "ratio": dense / seconds,
        "rounds": rounds,
        "visits": len(by_visit),
        "by_visit": list(by_visit),
    }


def fastest(seconds: Sequence[float]) -> float:
    """What a tenth of the rounds do not exceed; of ten or fewer, the fastest."""
    return sorted(seconds)[ceil(FASTEST * len(seconds)) - 1]


def synchronised(step: Step, device: str) -> Step:
    """The step, on a GPU up to the end of its last kernel; its outputs are dropped, so that none live between rounds."""

    def timed() -> None:
        step()
        if device != "cpu":
            torch.cuda.synchronize()

    return timed


def _dense(given: Operands, phase: str) -> Step:
    """The dense layer's step, made once for all contenders of a shape, with whose operands it goes."""
    if phase not in given.dense:
        given.dense = {phase: make_step(DENSE.build(given), given, phase)}
    return given.dense[phase]


def _dense_error(given: Operands, phase: str) -> float:
    if phase not in given.dense_error:
        given.dense_error[phase] = max(errors(_dense(given, phase)(), given).values())
    return given.dense_error[phase]


def _seconds(step: Step) -> float:
    start = perf_counter()
    step()
    return perf_counter() - start


def _interquartile_range(numbers: Sequence[float]) -> float:
    if len(numbers) == 1:
        return 0.0
    low, _, high = statistics.quantiles(numbers, n=4)
    return high - low


def _plan(given: Operands, phase: str) -> str:
    sizes = (given.suite.rows, tuple(given.S.shape), tuple(given.T.shape), given.dtype, given.x.device)
    chosen = weit_kernels.plan(*sizes, needs_grad=phase == "train")
    return f"{chosen.path}_{chosen.backend}"
