"""All figures are visited again while there is time, and each keeps what all of its visits found."""

import time
from itertools import count
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("pytest_benchmark")

from benchmarks import again, conftest
from benchmarks.options import DEADLINES, OPTIONS, Options


def bench(name: str, contender: str = "peer", **figures: Any) -> Any:
    return SimpleNamespace(fullname=name, stats="first", extra_info={"contender": contender, "ratio": 1.0, **figures})


class Session:
    """What ``visit_again`` needs of pytest; a visit moves its clock by a minute; ``fails``: visits that fail, by number."""

    def __init__(self, patch: pytest.MonkeyPatch, options: Options, *benches: Any, fails: tuple[int, ...] = ()) -> None:
        self.stash = {OPTIONS: options, DEADLINES: {"test_linear": 0.0}}
        self.benches, self.items = [*benches], [SimpleNamespace(nodeid=each.fullname) for each in benches]
        self.config = SimpleNamespace(stash=self.stash, _benchmarksession=SimpleNamespace(benchmarks=self.benches))
        self.testsfailed, self.order, self.now, self.fails, self.number = 0, [], options.began, fails, count()
        patch.setattr(again, "runtestprotocol", self.run)
        patch.setattr(again, "time", SimpleNamespace(monotonic=lambda: self.now))

    def run(self, item: Any, log: bool, nextitem: Any) -> list[Any]:
        assert self.stash[DEADLINES] == {"test_linear": float("inf")}  # else it would be left out again
        self.now += 60
        self.order.append(item.nodeid)
        number = next(self.number)
        if number not in self.fails:
            self.benches.append(
                SimpleNamespace(fullname=item.nodeid, stats=f"{number}", extra_info={"ratio": 2.0 + number})
            )
        return [SimpleNamespace(failed=number in self.fails)]

    def visited(self) -> list[str]:
        again.visit_again(self)
        return self.order


def test_all_are_visited_in_turn_what_the_package_chooses_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    session = Session(monkeypatch, Options(minutes=8), bench("a"), bench("b", "auto", error=1e-6), bench("c"))
    assert session.visited() == ["b", "a", "b", "c", "b", "a", "b", "c"]
    found = {each.fullname: (each.stats, each.extra_info["ratio"]) for each in session.benches}
    assert found == {"a": ("5", 7.0), "b": ("6", 8.0), "c": ("7", 9.0)}
    assert session.benches[1].extra_info["error"] == 1e-6  # of the first visit, which alone checks


def test_without_minutes_they_take_as_long_as_the_first_visits(monkeypatch: pytest.MonkeyPatch) -> None:
    session = Session(monkeypatch, Options(began=1000.0), bench("a"))
    session.now += 180
    assert session.visited() == ["a"] * 3


def test_what_has_no_ratio_is_timed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    session = Session(monkeypatch, Options(minutes=2), bench("a"))
    session.benches.insert(0, SimpleNamespace(fullname="memory", stats="", extra_info={}))
    assert session.visited() == ["a", "a"]


@pytest.mark.parametrize("options", [Options(quick=True), Options(device="cuda"), Options(minutes=0)])
def test_quick_runs_and_gpus_visit_once(options: Options, monkeypatch: pytest.MonkeyPatch) -> None:
    session = Session(monkeypatch, options, bench("a"))
    session.now = time.monotonic()
    assert session.visited() == []


def test_what_fails_is_not_visited_again_and_fails_the_session(monkeypatch: pytest.MonkeyPatch) -> None:
    session = Session(monkeypatch, Options(minutes=4), bench("a"), bench("b"), fails=(0,))
    assert session.visited() == ["a", "b", "b", "b"]
    assert session.testsfailed == 1
    assert [each.extra_info["ratio"] for each in session.benches] == [1.0, 5.0]
    session = Session(monkeypatch, Options(minutes=4), bench("a"), fails=(0,))
    assert session.visited() == ["a"]


@pytest.mark.parametrize("collects", [False, True])
def test_the_session_visits_again(collects: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    visited = []
    monkeypatch.setattr(conftest, "visit_again", visited.append)
    session: Any = SimpleNamespace(config=SimpleNamespace(option=SimpleNamespace(collectonly=collects)))
    loop = conftest.pytest_runtestloop(session)
    next(loop)
    assert not visited  # before all tests have run
    with pytest.raises(StopIteration) as ended:
        loop.send(True)
    assert ended.value.value is True
    assert visited == [session] * (not collects)
