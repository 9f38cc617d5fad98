"""Figures of loud moments are taken again, and the quieter ones stay."""

import time
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("pytest_benchmark")

from benchmarks import again, conftest, pace
from benchmarks.options import DEADLINES, OPTIONS, Options

FAILS: Any = object()
failed: list[int] = []


def bench(name: str, pace: float, handshake: float = 5.0, contender: str = "peer", seconds: float = 1.0) -> Any:
    row = {"contender": contender, "gflops": pace, "handshake": handshake, "seconds": seconds, "dense_seconds": 1.0}
    return SimpleNamespace(fullname=name, extra_info=row)


@pytest.fixture
def visits(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Calls ``visit_again`` on figures, with what later visits find; returns the figures and who was visited."""

    def visit(benches: list[Any], later: dict[str, list[Any]], options: Options) -> tuple[list[Any], list[str]]:
        order: list[str] = []
        failed.clear()

        def run(item: Any, log: bool, nextitem: Any) -> list[Any]:
            order.append(item.nodeid)
            assert stash[DEADLINES] == {"test_linear": float("inf")}  # else it would be left out again
            if later[item.nodeid]:
                found = later[item.nodeid].pop(0)
                benches.extend([found] * (found is not FAILS))
                return [SimpleNamespace(failed=found is FAILS)]
            monkeypatch.setattr(again, "time", SimpleNamespace(monotonic=lambda: float("inf")))
            return []

        monkeypatch.setattr(again, "runtestprotocol", run)
        monkeypatch.setattr(pace, "_share", pace.SHARE)
        monkeypatch.setattr(pace, "_seen", [100.0] * 3)
        monkeypatch.setattr(pace, "_shaken", [5.0] * 20)
        stash = {OPTIONS: options, DEADLINES: {"test_linear": 0.0}}
        config = SimpleNamespace(stash=stash, _benchmarksession=SimpleNamespace(benchmarks=benches))
        items = [SimpleNamespace(nodeid=each.fullname) for each in benches]
        session = SimpleNamespace(config=config, items=items, testsfailed=0)
        again.visit_again(session)
        failed.append(session.testsfailed)
        return benches, order

    return visit


def test_loud_figures_give_way_to_quieter_ones_what_the_package_chooses_first_then_the_cheap(visits: Any) -> None:
    first = [bench("a", 80.0, seconds=2.0), bench("b", 99.0), bench("c", 99.0, 8.0), bench("d", 60.0, contender="auto")]
    later = {"a": [bench("a", 70.0), bench("a", 98.0)], "c": [bench("c", 98.0, 5.1)], "d": [bench("d", 100.0)]}
    found, order = visits(first, later, Options(minutes=60))
    assert order == ["d", "c", "a", "a"]
    assert [(each.fullname, each.extra_info["gflops"]) for each in found] == [
        ("a", 98),
        ("b", 99),
        ("c", 98),
        ("d", 100),
    ]


def test_visits_end_with_the_time(visits: Any) -> None:
    later = {"a": [bench("a", 70.0), bench("a", 85.0), bench("a", 60.0)]}
    found, order = visits([bench("a", 80.0)], later, Options(minutes=60))
    assert order == ["a"] * 4
    assert [each.extra_info["gflops"] for each in found] == [85.0]
    assert visits([bench("a", 80.0)], {}, Options(minutes=1, began=time.monotonic() - 61))[1] == []


@pytest.mark.parametrize("options", [Options(quick=True), Options(device="cuda")])
def test_quick_runs_and_gpus_visit_once(visits: Any, options: Options) -> None:
    assert visits([bench("a", 10.0)], {}, options)[1] == []


def test_what_fails_the_second_time_is_not_visited_a_third_and_fails_the_session(visits: Any) -> None:
    first = [bench("a", 80.0), bench("b", 70.0)]
    found, order = visits(first, {"a": [FAILS], "b": [bench("b", 60.0), bench("b", 100.0)]}, Options(minutes=60))
    assert order == ["a", "b", "b"]
    assert [each.extra_info["gflops"] for each in found] == [80.0, 100.0]
    assert failed == [1]


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
