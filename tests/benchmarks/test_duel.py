"""Who is not timed is on record, with the reason; options mean what they say."""

from bisect import insort
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import replace
from itertools import chain, repeat
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

pytest.importorskip("pytest_benchmark")

from benchmarks import pace
from benchmarks.conftest import pytest_runtest_makereport
from benchmarks.contenders import CONTENDERS
from benchmarks.contenders.weit import Kron
from benchmarks.duel import duel
from benchmarks.options import Options, read_options
from benchmarks.record import RECORD, Noted, Record
from benchmarks.suite import SuiteShape
from weit_kernels.shapes import KronShape

SUITE = SuiteShape("tiny", "train", KronShape(2, 3, 3, 4, 4, 12, 12), 5)
(AUTO,) = (contender for contender in CONTENDERS if contender.name == "auto")


def stub() -> Any:
    """A stand-in for pytest-benchmark's fixture that calls as it does and counts rounds."""

    def pedantic(step, setup, rounds) -> None:
        for _ in range(rounds):
            setup()
            assert step() is None  # outputs that stay alive would change what the next round finds in cache
        bench.rounds = rounds
        stats.stats.data = [1e-3] * rounds

    stats = SimpleNamespace(stats=SimpleNamespace(median=1e-3, iqr=1e-4))
    bench = SimpleNamespace(pedantic=pedantic, extra_info={}, stats=stats, group=None)
    return bench


def run(contender: Any, phase: str = "train") -> tuple[Any, Record]:
    bench, record = stub(), Record()
    with suppress(pytest.skip.Exception, pytest.fail.Exception):
        duel(bench, "linear", SUITE, phase, contender, Options(quick=True), record)
    return bench, record


@pytest.mark.parametrize("phase", ["forward", "train"])
def test_a_right_contender_is_timed_beside_the_dense_layer(phase: str) -> None:
    bench, record = run(AUTO, phase)
    info = bench.extra_info
    assert bench.group == f"linear {phase}: tiny"
    assert bench.rounds >= 3
    assert info["ratio"] == pytest.approx(info["dense_seconds"] / 1e-3)
    assert 0 <= info["error"] < 1e-5
    assert info["dense_iqr"] >= 0
    assert info["gflops"] > 0
    assert 0 < info["handshake"] < 1
    assert 3 <= info["counted"] <= bench.rounds
    assert info["plan"].endswith(("torch", "cpp"))
    assert not record.failed
    assert not record.not_run


def test_what_the_package_chooses_is_timed_for_longer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.duel._seconds", lambda step: step() or 0.05)
    named = next(c for c in CONTENDERS if c.name == "templates_first_torch")
    rounds = []
    for contender in (named, AUTO):
        bench = stub()
        duel(bench, "linear", SUITE, "forward", contender, Options(), Record())
        rounds.append(bench.rounds)
    assert rounds == [5, 11]  # 1.2 s in steps of 0.1 s, and no fewer than five


class Wrong(Kron):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) * 1.01


class Raises(Kron):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("out of resources")


@pytest.mark.parametrize(
    ("build", "message"),
    [(Wrong, "WrongResult: relative error 1.0e-02 in output"), (Raises, "RuntimeError: out of resources")],
)
def test_a_failing_contender_is_on_record_and_not_timed(build: type[Kron], message: str) -> None:
    bench, record = run(replace(AUTO, name="broken", build=build))
    assert not bench.extra_info
    (row,) = record.failed
    assert message in row.pop("reason")
    assert row == {"suite": "linear", "shape": "tiny", "phase": "train", "contender": "broken"}


@pytest.mark.parametrize(
    ("error", "rows"),
    [
        (ValueError("broke\nwhile timing"), [("growth", "test_layer[N=1]", "ValueError: broke while timing")]),
        (Noted("noted by the suite"), []),
        (None, []),
    ],
)
def test_every_failed_phase_is_on_record_once(error: BaseException | None, rows: list[tuple[str, str, str]]) -> None:
    record, report = Record(), SimpleNamespace(failed=error is not None)
    item: Any = SimpleNamespace(
        path=Path("test_growth.py"), name="test_layer[N=1]", config=SimpleNamespace(stash={RECORD: record})
    )
    call: Any = SimpleNamespace(excinfo=error and pytest.ExceptionInfo.from_exc_info((type(error), error, None)))
    hook = pytest_runtest_makereport(item, call)
    next(hook)
    with pytest.raises(StopIteration) as stopped:
        hook.send(report)
    assert stopped.value.value is report
    assert [tuple(row.values()) for row in record.failed] == rows


def test_what_cannot_run_is_on_record_with_the_reason() -> None:
    bench, record = run(replace(AUTO, supports=lambda *_: "needs a GPU"))
    assert not bench.extra_info
    assert [row["reason"] for row in record.not_run] == ["needs a GPU"]


def given(**options: Any) -> Any:
    defaults = {"device": "cpu", "dtype": "float32", "shapes": "", "quick": False, "minutes": None}
    return SimpleNamespace(option=SimpleNamespace(**{**defaults, **options}))


def test_options_are_read() -> None:
    options = read_options(given(dtype="bfloat16", shapes="square_768, llm_4096", minutes=2.0))
    assert options.dtype is torch.bfloat16
    assert options.shapes == ("square_768", "llm_4096")
    ends = options.deadlines(["test_peers", "test_linear", "test_linear"])
    assert list(ends) == ["test_linear", "test_peers"]  # the order in which they run
    assert options.began < ends["test_linear"] < ends["test_peers"] == pytest.approx(options.began + 120)
    assert options.ends == pytest.approx(options.began + 120)
    assert read_options(given()).deadlines(["test_conv"]) == {"test_conv": float("inf")}
    assert read_options(given(quick=True)).seconds < read_options(given()).seconds


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"minutes": 0.0}, "more than 0"),
        ({"shapes": "square_768,nosuch"}, "got nosuch"),
        pytest.param(
            {"device": "cuda"},
            "sees no CUDA device",
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU, so asking for one is no error"),
        ),
    ],
)
def test_wrong_options_are_refused(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(pytest.UsageError, match=message):
        read_options(given(**wrong))


class Machine:
    """A clock, a pace for each look at it, which takes a tenth of a second, and the microseconds of each handshake."""

    def __init__(
        self,
        monkeypatch: pytest.MonkeyPatch,
        paces: Iterable[float],
        seen: Sequence[float] = (100.0,) * 3,
        handshakes: Iterable[float] = repeat(5.0),
    ) -> None:
        self.now, self.paces, self.handshakes = 1000.0, iter(paces), iter(handshakes)
        monkeypatch.setattr(pace, "_shaken", [5.0] * 20)
        monkeypatch.setattr(pace, "handshake", lambda: next(self.handshakes))
        monkeypatch.setattr(pace, "_seen", list(seen))
        monkeypatch.setattr(pace, "_begun", 0.0)
        monkeypatch.setattr(pace, "_waited", 0.0)
        monkeypatch.setattr(pace, "gflops", self.gflops)
        monkeypatch.setattr(pace, "time", SimpleNamespace(monotonic=lambda: self.now, sleep=self.sleep))

    def gflops(self) -> float:
        self.sleep(0.1)
        found = next(self.paces)
        insort(pace._seen, found)
        return found

    def sleep(self, seconds: float) -> None:
        self.now += seconds


def test_quiet_is_waited_for_but_not_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine(monkeypatch, [60.0, 70.0, 95.0, 40.0])
    assert pace.wait(60) == 95.0
    assert pace.wait(0) == 40.0
    assert next(machine.paces, None) is None


def test_waits_take_a_share_of_the_time_at_the_most(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine(monkeypatch, repeat(50.0), seen=(100.0,) * 1000)
    for _ in range(100):
        pace.wait(60)
    share = pace.SHARE * 1000 / (1 - pace.SHARE)
    looks = 100 * 0.2  # the least that a wait takes
    assert share - 1 < machine.now - 1000 < share + looks + 1


def test_the_first_wait_looks_around(monkeypatch: pytest.MonkeyPatch) -> None:
    Machine(monkeypatch, chain([60.0], repeat(100.0)), seen=())
    monkeypatch.setattr(pace, "_begun", None)
    assert pace.wait(60) == 100.0
    assert len(pace._seen) > 10


def test_rounds_beside_others_do_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    #                             the first two slices are quiet, the third ends loud, the fourth begins after a wait
    machine = Machine(monkeypatch, [100.0, 99.0, 100.0, 60.0, 50.0, 98.0, 97.0])
    slices = pace.Slices(10)
    for _ in range(8):
        slices.begin_round()
        machine.sleep(0.2)
    assert slices.quiet(least=3) == ([0, 1, 2, 3, 6, 7], 97.0, 5.0)


def test_rounds_between_far_cores_do_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    #                                         the second round ends far, the third waits for near cores, the fourth ends far
    machine = Machine(monkeypatch, repeat(100.0), handshakes=[5.0, 5.0, 5.2, 7.0, 7.0, 5.1, 5.0, 7.0, 5.4])
    slices = pace.Slices(0)
    for patience in (0.0, 0.0, 0.005, 0.0, 0.0):
        slices._patience = patience
        slices.begin_round()
        machine.sleep(0.01)
    assert slices.quiet(least=2) == ([0, 2], 100.0, 5.2)


def test_a_round_ends_before_the_machine_is_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    #                                                                first round ends far, what begins the next is near
    machine = Machine(monkeypatch, repeat(100.0), handshakes=[5.0, 5.0, 7.0, 5.0, 5.1])
    slices = pace.Slices(0)
    for _ in range(2):
        slices.begin_round()
        machine.sleep(0.4)
    assert slices.quiet(least=1) == ([1], 100.0, 5.1)


def test_where_cores_are_never_near_rounds_count_by_pace(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine(monkeypatch, [100.0, 99.0, 60.0], handshakes=repeat(8.0))
    slices = pace.Slices(0)
    for _ in range(4):
        slices.begin_round()
        machine.sleep(0.2)
    assert slices.quiet(least=2) == ([0, 1], 99.0, 8.0)


def test_where_it_is_never_quiet_the_quietest_rounds_count(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine(monkeypatch, [50.0, 60.0, 80.0, 80.0, 70.0])
    slices = pace.Slices(0)
    for _ in range(6):
        slices.begin_round()
        machine.sleep(0.2)
    assert slices.quiet(least=2) == ([4, 5], 80.0, 5.0)
    assert slices.quiet(least=3) == ([2, 4, 5], 60.0, 5.0)


def test_quietness_is_the_worse_of_pace_and_handshake(monkeypatch: pytest.MonkeyPatch) -> None:
    Machine(monkeypatch, [])
    good, slow, far = ({"gflops": g, "handshake": h} for g, h in ((100.0, 5.0), (90.0, 5.0), (100.0, 7.0)))
    assert pace.quietness(good, pace.bounds()) >= 1
    assert pace.quietness(far, pace.bounds()) < pace.quietness(slow, pace.bounds()) < 1


def test_a_lucky_look_does_not_set_the_pace(monkeypatch: pytest.MonkeyPatch) -> None:
    Machine(monkeypatch, [100.0], seen=[90.0] * 3 + [100.0] * 35 + [200.0, 300.0])
    assert pace.wait(60) == 100.0
