"""All figures are visited again while there is time, and each keeps what all of its visits found."""

import time
from itertools import count
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("pytest_benchmark")

from benchmarks import again, conftest
from benchmarks.options import DEADLINES, OPTIONS, Options


def bench(name: str, **figures: Any) -> Any:
    row = {"contender": "peer", "ratio": 1.0, "visits": 1, "seconds": 1.0, "dense_seconds": 1.0, "by_visit": []}
    return SimpleNamespace(fullname=name, stats="first", extra_info={**row, **figures})


def by_visit(*seconds: tuple[float, float]) -> list[dict[str, float]]:
    return [{"dense_seconds": dense, "seconds": ours} for dense, ours in seconds]


class Session:
    """What ``visit_again`` needs of pytest; a visit moves its clock by a minute; ``fails``: visits that fail, by number."""

    def __init__(self, patch: pytest.MonkeyPatch, options: Options, *benches: Any, fails: tuple[int, ...] = ()) -> None:
        self.stash = {OPTIONS: options, DEADLINES: {"test_linear": 0.0}}
        self.benches, self.items = [*benches], [SimpleNamespace(nodeid=each.fullname) for each in benches]
        self.config = SimpleNamespace(stash=self.stash, _benchmarksession=SimpleNamespace(benchmarks=self.benches))
        self.testsfailed, self.order, self.now, self.fails, self.number = 0, [], options.began, fails, count()
        self.by_visit: dict[str, list[dict[str, float]]] = {}
        self.said: list[str] = []
        self.interrupted = -1  # the visit of that number is, by Ctrl-C
        patch.setattr(again, "runtestprotocol", self.run)
        patch.setattr(again, "time", SimpleNamespace(monotonic=lambda: self.now))

    def run(self, item: Any, log: bool, nextitem: Any) -> list[Any]:
        assert self.stash[DEADLINES] == {"test_linear": float("inf")}  # else it would be left out again
        self.now += 60
        self.order.append(item.nodeid)
        number = next(self.number)
        found = (
            {}
            if number in self.fails
            else {"ratio": 2.0 + number, "visits": 2, "by_visit": self.by_visit.get(item.nodeid, [])}
        )
        # Listed before the first round, as the plugin does.
        self.benches.append(SimpleNamespace(fullname=item.nodeid, stats=f"{number}", extra_info=found))
        if number == self.interrupted:
            raise KeyboardInterrupt
        return [SimpleNamespace(failed=number in self.fails)]

    def visited(self) -> list[str]:
        again.visit_again(self, self.said.append)
        return self.order

    def found(self) -> dict[str, tuple[str, float]]:
        return {each.fullname: (each.stats, each.extra_info["ratio"]) for each in self.benches}


def test_all_are_visited_in_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    session = Session(monkeypatch, Options(minutes=5), bench("a"), bench("b", error=1e-6))
    assert session.visited() == ["a", "b", "a", "b", "a"]
    assert session.said[0] == "2 figures, 2 not settled, 240 s left"  # after the first of them
    assert session.found() == {"a": ("4", 6.0), "b": ("3", 5.0)}
    assert session.benches[1].extra_info["error"] == 1e-6  # of the first visit, which alone checks


def test_what_the_package_chooses_has_every_turn_others_by_visits_and_price(monkeypatch: pytest.MonkeyPatch) -> None:
    benches = [bench("a", seconds=9.0), bench("b", contender="auto"), bench("c", visits=2), bench("d", seconds=2.0)]
    session = Session(monkeypatch, Options(minutes=6), *benches)
    assert session.visited() == ["d", "b", "a", "b", "c", "b"]


def test_settled_figures_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    benches = [bench("a"), bench("b"), bench("c", contender="auto"), bench("d", contender="auto"), bench("e")]
    session = Session(monkeypatch, Options(minutes=8), *benches)
    agreed = by_visit((1.0, 2.0), (1.04, 2.0))
    session.by_visit = dict.fromkeys("ac", agreed)
    assert session.visited() == ["a", "b", "c", "d", "e", "b", "d", "b"]
    session = Session(monkeypatch, Options(minutes=4), bench("c", contender="auto", by_visit=agreed))
    session.by_visit = {"c": agreed}
    assert session.visited() == ["c"] * 4


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        ([(1.0, 1.0)], False),
        ([(1.0, 1.0), (1.1, 1.0)], False),
        ([(1.0, 1.0), (1.0, 1.1)], False),
        ([(1.0, 1.0), (1.5, 1.04), (1.04, 1.5)], True),
    ],
)
def test_settled_is_what_two_visits_agree_on(seconds: list[tuple[float, float]], said: bool) -> None:
    assert again.settled({"by_visit": by_visit(*seconds)}) is said


def test_without_minutes_they_take_as_long_as_the_first_visits(monkeypatch: pytest.MonkeyPatch) -> None:
    session = Session(monkeypatch, Options(began=1000.0), bench("a"))
    session.now += 180
    assert session.visited() == ["a"] * 3


def test_what_has_no_ratio_is_timed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    session = Session(monkeypatch, Options(minutes=2), bench("a"))
    session.benches.insert(0, SimpleNamespace(fullname="memory", stats="", extra_info={}))
    session.benches.append(bench("dense", contender="dense"))
    assert session.visited() == ["a", "a"]


@pytest.mark.parametrize("options", [Options(quick=True), Options(device="cuda"), Options(minutes=0)])
def test_quick_runs_and_gpus_visit_once(options: Options, monkeypatch: pytest.MonkeyPatch) -> None:
    session = Session(monkeypatch, options, bench("a"))
    session.now = time.monotonic()
    assert session.visited() == []


def test_what_fails_keeps_its_figures_is_not_visited_again_and_fails_the_session(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    session = Session(monkeypatch, Options(minutes=5), bench("a"), bench("b"), fails=(2,))
    assert session.visited() == ["a", "b", "a", "b", "b"]
    assert session.testsfailed == 1
    assert session.found() == {"a": ("0", 2.0), "b": ("4", 6.0)}
    session = Session(monkeypatch, Options(minutes=4), bench("a"), fails=(0,))
    assert session.visited() == ["a"]


def test_an_interrupted_visit_leaves_what_earlier_ones_found(monkeypatch: pytest.MonkeyPatch) -> None:
    session = Session(monkeypatch, Options(minutes=60), *map(bench, "abcd"))
    session.interrupted = 7
    with pytest.raises(KeyboardInterrupt):
        session.visited()
    assert session.found() == {"a": ("4", 6.0), "b": ("5", 7.0), "c": ("6", 8.0), "d": ("3", 5.0)}


@pytest.mark.parametrize("collects", [False, True])
def test_the_session_visits_again(collects: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    visited = []
    monkeypatch.setattr(conftest, "visit_again", lambda session, say: visited.append(session))
    session = _session(collects)
    loop = conftest.pytest_runtestloop(session)
    next(loop)
    assert not visited  # before all tests have run
    with pytest.raises(StopIteration) as ended:
        loop.send(True)
    assert ended.value.value is True
    assert visited == [session] * (not collects)


def test_what_was_interrupted_before_its_first_round_is_not_written() -> None:
    session = _session(False)
    benches = session.config._benchmarksession.benchmarks
    loop = conftest.pytest_runtestloop(session)
    next(loop)
    found = [([1.0], False), ([], True), ([], False)]  # what failed is named in the file, without figures
    benches += [SimpleNamespace(stats=SimpleNamespace(data=data), has_error=failed) for data, failed in found]
    with pytest.raises(KeyboardInterrupt):
        loop.throw(KeyboardInterrupt)
    assert [(bench.stats.data, bench.has_error) for bench in benches] == found[:2]


class _Plugins:
    def get_plugin(self, name: str) -> Any:
        return SimpleNamespace(write_line=print)


def _session(collects: bool) -> Any:
    option, benches = SimpleNamespace(collectonly=collects), SimpleNamespace(benchmarks=[])
    return SimpleNamespace(config=SimpleNamespace(option=option, _benchmarksession=benches, pluginmanager=_Plugins()))
