"""Second visits: figures of loud moments are taken again when the run has shown how fast the machine can be."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping
from math import inf
from typing import Any

import pytest
from _pytest.runner import runtestprotocol

from benchmarks import pace
from benchmarks.contenders import AUTO
from benchmarks.options import DEADLINES, OPTIONS

_SHARE = 0.25  # of the first visits' time, where no minutes are given


def visit_again(session: pytest.Session) -> None:
    """Time again what was timed beside others or between far cores, until time is up.

    What the package chooses comes first, then what takes least. A figure gives way to one of a quieter moment; those that
    no visit finds quiet keep the quietest.
    """
    options = session.config.stash[OPTIONS]
    if not options.cpu or options.quick:
        return
    now = time.monotonic()
    ends = options.ends if options.ends < inf else now + _SHARE * (now - options.began)
    session.config.stash[DEADLINES] = dict.fromkeys(session.config.stash[DEADLINES], inf)
    benches, items = session.config._benchmarksession.benchmarks, {item.nodeid: item for item in session.items}
    visits: Counter[str] = Counter()
    given_up: set[str] = set()
    pace.wait_freely()
    while time.monotonic() < ends:
        limits = pace.bounds()
        loud = [bench for bench in benches if bench.fullname not in given_up and _quietness(bench, limits) < 1]
        if not loud:
            return
        bench = min(loud, key=lambda each: (visits[each.fullname], *_order(each.extra_info)))
        visits[bench.fullname] += 1
        before = len(benches)
        reports = runtestprotocol(items[bench.fullname], log=False, nextitem=None)
        session.testsfailed += any(report.failed for report in reports)
        if len(benches) == before:  # it failed, and is on record
            given_up.add(bench.fullname)
        elif _quietness(found := benches.pop(), limits) > _quietness(bench, limits):
            benches[benches.index(bench)] = found


def _order(row: Mapping[str, Any]) -> tuple[bool, float]:
    return row.get("contender", AUTO) != AUTO, row["seconds"] + row["dense_seconds"]


def _quietness(bench: Any, limits: Mapping[str, float]) -> float:
    row = bench.extra_info
    return pace.quietness(row, limits) if "handshake" in row else inf  # what is timed otherwise is left as it is
