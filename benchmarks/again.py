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
    pace.wait_freely()
    while time.monotonic() < ends:
        loud = [bench for bench in benches if "handshake" in bench.extra_info and _quietness(bench) < 1]
        if not loud:
            return
        bench = min(loud, key=lambda each: (visits[each.fullname], *_order(each.extra_info)))
        visits[bench.fullname] += 1
        before = len(benches)
        _run(items[bench.fullname])
        for found in benches[before:]:
            if _quietness(found) > _quietness(bench):
                benches[benches.index(bench)] = found
        del benches[before:]


def _order(row: Mapping[str, Any]) -> tuple[bool, float]:
    return row.get("contender", AUTO) != AUTO, row["seconds"] + row["dense_seconds"]


def _quietness(bench: Any) -> float:
    return pace.quietness(bench.extra_info, pace.bounds())


def _run(item: pytest.Item) -> None:
    item._initrequest()  # type: ignore[attr-defined]  # fixtures anew, as in plugins that run failed tests again
    runtestprotocol(item, log=False, nextitem=None)
