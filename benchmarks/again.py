"""Later visits: every figure is timed at moments far apart, since others keep a machine busy for seconds at a time."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from math import inf
from typing import Any

import pytest
from _pytest.runner import runtestprotocol

from benchmarks.contenders import AUTO
from benchmarks.options import DEADLINES, OPTIONS
from benchmarks.tables import compared

_SHARE = 1.0  # of the first visits' time, where no minutes are given
_SAY_EVERY = 20.0  # seconds
# What the two fastest visits differ by, at the most, where neither others nor the moment decide any more.
SETTLED = 0.05


def visit_again(session: pytest.Session, say: Callable[[str], object]) -> None:
    """Add rounds to all figures, those that are not settled first, until time is up; ``say`` now and then how far it is."""
    options = session.config.stash[OPTIONS]
    if not options.cpu or options.quick:
        return
    now = time.monotonic()
    ends = options.ends if options.ends < inf else now + _SHARE * (now - options.began)
    session.config.stash[DEADLINES] = dict.fromkeys(session.config.stash[DEADLINES], inf)
    benches, items = session.config._benchmarksession.benchmarks, {item.nodeid: item for item in session.items}
    timed = [bench for bench in benches if compared(bench.extra_info)]
    said = time.monotonic()
    for bench in _turns(timed):
        if time.monotonic() >= ends:
            return
        if time.monotonic() - said > _SAY_EVERY:
            said = time.monotonic()
            waiting = sum(not settled(each.extra_info) for each in timed)
            say(f"{len(timed)} figures, {waiting} not settled, {ends - said:.0f} s left")
        before, failed = len(benches), True
        try:
            reports = runtestprotocol(items[bench.fullname], log=False, nextitem=None)
            failed = any(report.failed for report in reports)
        finally:  # pytest-benchmark lists a benchmark before its first round; what fails, or is interrupted, adds nothing
            found, benches[before:] = benches[before:], []
            session.testsfailed += failed
        if failed or not found:
            timed.remove(bench)
        else:
            bench.stats, bench.extra_info = found[0].stats, {**bench.extra_info, **found[0].extra_info}


def _turns(timed: list[Any]) -> Iterator[Any]:
    """Which one is next, for ever, as long as there is any.

    A turn is all that is not settled of what the package chooses, and as many of the others: those with the fewest visits,
    and of these the cheapest.
    """
    while timed:
        chosen = [bench for bench in timed if _is_chosen(bench)]
        waiting = [bench for bench in chosen if not settled(bench.extra_info)] or chosen
        others = sorted((bench for bench in timed if not _is_chosen(bench)), key=_order)
        yield from others[: len(chosen) or None]
        yield from waiting


def _is_chosen(bench: Any) -> bool:
    return bench.extra_info.get("contender", AUTO) == AUTO


def _order(bench: Any) -> tuple[bool, int, float]:
    row = bench.extra_info
    return settled(row), row["visits"], row["seconds"] + row["dense_seconds"]


def settled(figures: Mapping[str, Any]) -> bool:
    """Whether two visits found much the same fastest rounds, of the dense layer and of the contender."""
    times = [sorted(visit[which] for visit in figures["by_visit"]) for which in ("dense_seconds", "seconds")]
    return all(len(each) > 1 and each[1] <= (1 + SETTLED) * each[0] for each in times)
