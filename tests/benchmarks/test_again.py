"""Figures of loud moments are taken again, and the quieter ones stay."""

import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("pytest_benchmark")

from benchmarks import again, pace
from benchmarks.options import DEADLINES, OPTIONS, Options

ROOT = Path(__file__).parents[2]


def bench(name: str, pace: float, handshake: float = 5.0, contender: str = "peer", seconds: float = 1.0) -> Any:
    row = {"contender": contender, "gflops": pace, "handshake": handshake, "seconds": seconds, "dense_seconds": 1.0}
    return SimpleNamespace(fullname=name, extra_info=row)


@pytest.fixture
def visits(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Calls ``visit_again`` on figures, with what later visits find; returns the figures and who was visited."""

    def visit(benches: list[Any], later: dict[str, list[Any]], options: Options) -> tuple[list[Any], list[str]]:
        order: list[str] = []

        def run(item: Any) -> None:
            order.append(item.nodeid)
            if later[item.nodeid]:
                benches.append(later[item.nodeid].pop(0))
            else:
                monkeypatch.setattr(again, "time", SimpleNamespace(monotonic=lambda: float("inf")))

        monkeypatch.setattr(again, "_run", run)
        monkeypatch.setattr(pace, "_share", pace.SHARE)
        monkeypatch.setattr(pace, "_seen", [100.0] * 3)
        monkeypatch.setattr(pace, "_shaken", [5.0] * 20)
        stash = {OPTIONS: options, DEADLINES: {"test_linear": 0.0}}
        config = SimpleNamespace(stash=stash, _benchmarksession=SimpleNamespace(benchmarks=benches))
        again.visit_again(
            SimpleNamespace(config=config, items=[SimpleNamespace(nodeid=each.fullname) for each in benches])
        )
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


def test_a_second_visit_has_fixtures_of_its_own(tmp_path: Path) -> None:
    (tmp_path / "conftest.py").write_text(
        "import pytest\n"
        "from benchmarks.again import _run\n"
        "@pytest.fixture\n"
        "def fresh(): return []\n"
        "@pytest.hookimpl(wrapper=True)\n"
        "def pytest_runtestloop(session):\n"
        "    yield\n"
        "    _run(session.items[0])\n"
    )
    (tmp_path / "test_it.py").write_text(
        "def test_it(fresh, benchmark):\n"
        "    fresh.append(1)\n"
        "    benchmark.pedantic(len, args=(fresh,))\n"
        f"    open({str(tmp_path / 'log')!r}, 'a').write(f'{{fresh}}\\n')\n"
    )
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-c", "/dev/null", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    assert (tmp_path / "log").read_text() == "[1]\n[1]\n"
