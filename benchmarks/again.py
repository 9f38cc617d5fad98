"""Later visits: every figure is timed at moments far apart, since others keep a machine busy for seconds at a time."""

from __future__ import annotations

import time
from itertools import cycle
from math import inf

import pytest
from _pytest.runner import runtestprotocol

from benchmarks.contenders import AUTO
from benchmarks.options import DEADLINES, OPTIONS

_SHARE = 1.0  # of the first visits' time, where no minutes are given


def visit_again(session: pytest.Session) -> None:
    """Add rounds to all figures in turn until time is up, to what the package chooses twice as often."""
    options = session.config.stash[OPTIONS]
    if not options.cpu or options.quick:
        return
    now = time.monotonic()
    ends = options.ends if options.ends < inf else now + _SHARE * (now - options.began)
    session.config.stash[DEADLINES] = dict.fromkeys(session.config.stash[DEADLINES], inf)
    benches, items = session.config._benchmarksession.benchmarks, {item.nodeid: item for item in session.items}
    timed = [bench for bench in benches if "ratio" in bench.extra_info]
    chosen = [bench for bench in timed if bench.extra_info.get("contender", AUTO) == AUTO]
    lost: set[str] = set()
    for bench in cycle([*chosen, *timed]):
        if time.monotonic() >= ends or len(lost) == len(timed):
            return
        if bench.fullname in lost:
            continue
        before = len(benches)
        reports = runtestprotocol(items[bench.fullname], log=False, nextitem=None)
        session.testsfailed += any(report.failed for report in reports)
        if len(benches) == before:  # it failed, and is on record
            lost.add(bench.fullname)
            continue
        found = benches.pop()  # of all visits
        bench.stats, bench.extra_info = found.stats, {**bench.extra_info, **found.extra_info}
