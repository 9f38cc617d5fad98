"""Who is not timed is on record, with the reason; options mean what they say."""

import gc
import weakref
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

pytest.importorskip("pytest_benchmark")

from benchmarks import conftest, models, operands
from benchmarks.conftest import pytest_runtest_makereport
from benchmarks.contenders import CONTENDERS
from benchmarks.contenders.weit import Kron
from benchmarks.duel import duel, fastest, interleave
from benchmarks.operands import WrongResult
from benchmarks.options import DEADLINES, OPTIONS, Options, read_options
from benchmarks.record import RECORD, Noted, Record
from benchmarks.suite import SuiteShape
from weit_kernels.shapes import KronShape

SUITE = SuiteShape("tiny", "train", KronShape(2, 3, 3, 4, 4, 12, 12), 5)
(AUTO,) = (contender for contender in CONTENDERS if contender.name == "auto")


def stub(seconds: float = 1e-3) -> Any:
    """A stand-in for pytest-benchmark's fixture that calls as it does, counts rounds and says what each took."""

    def pedantic(step, setup, rounds) -> None:
        for _ in range(rounds):
            setup()
            assert step() is None  # outputs that stay alive would change what the next round finds in cache
        bench.rounds = rounds
        stats.stats.data = [seconds] * rounds

    stats = SimpleNamespace(stats=SimpleNamespace(data=[]))
    bench = SimpleNamespace(pedantic=pedantic, extra_info={}, stats=stats, group=None, fullname="tiny", disabled=False)
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
    assert info["rounds"] == bench.rounds >= 2
    assert info["visits"] == 1
    assert info["ratio"] == pytest.approx(info["dense_seconds"] / 1e-3)
    assert 0 <= info["error"] < 1e-5
    assert info["dense_iqr"] >= 0
    assert info["plan"].endswith(("torch", "cpp"))
    assert not record.failed
    assert not record.not_run


def test_visits_add_rounds_and_the_fastest_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    dense = 2e-2
    monkeypatch.setattr("benchmarks.duel.SHORT", 0.0)
    monkeypatch.setattr("benchmarks.duel._seconds", lambda step: step() or dense)
    record, benches = Record(), [stub(4e-3), stub(2e-3), stub(8e-3)]
    for bench in benches:
        duel(bench, "linear", SUITE, "forward", AUTO, Options(), record)
        dense *= 2
    infos = [bench.extra_info for bench in benches]
    assert [info["visits"] for info in infos] == [1, 2, 3]
    assert [info["rounds"] for info in infos] == [
        6,
        16,
        26,
    ]  # 0.25 s of what the first calls take, then of the first visit
    assert [(info["dense_seconds"], info["seconds"]) for info in infos] == [(2e-2, 4e-3), (2e-2, 2e-3), (2e-2, 2e-3)]
    assert [info["ratio"] for info in infos] == pytest.approx([5.0, 10.0, 10.0])
    assert [info["dense_median"] for info in infos] == [2e-2, 4e-2, 4e-2]
    assert infos[2]["by_visit"][1] == {"rounds": 10, "dense_seconds": 4e-2, "seconds": 2e-3}
    assert benches[2].stats.stats.data == [4e-3] * 6 + [2e-3] * 10 + [8e-3] * 10
    assert "visits" not in record.rows()


def test_who_was_told_not_to_measure_checks_all_the_same() -> None:
    bench, record = stub(), Record()
    bench.disabled = True
    duel(bench, "linear", SUITE, "forward", AUTO, Options(quick=True), record)
    assert bench.extra_info["error"] < 1e-5
    assert "ratio" not in bench.extra_info
    assert not record.failed


@pytest.mark.parametrize("warm", [False, True])
def test_whether_operands_are_brought_into_cache_is_the_shapes_alone(
    warm: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []
    monkeypatch.setattr("benchmarks.duel.SHORT", SUITE.dense_flops("forward") + warm)
    monkeypatch.setattr("benchmarks.duel._seconds", lambda step: calls.append("timed") or 1.0)
    monkeypatch.setattr("benchmarks.duel._dense", lambda given, phase: lambda: calls.append("theirs") or {})
    monkeypatch.setattr("benchmarks.duel._dense_error", lambda given, phase: 0.0)
    duel(stub(1.0), "linear", SUITE, "forward", AUTO, Options(), Record())
    assert calls == ["timed", "timed", *["theirs"] * warm, "timed"]  # a call of each tells how long they take


def test_on_a_gpu_medians_count(monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = iter([0.05, 0.05, 3.0, 4.0])  # one call of each before, and two rounds of the dense layer
    monkeypatch.setattr("benchmarks.duel._seconds", lambda step: step() or next(seconds))
    info = interleave(stub(2.0), lambda: None, lambda: None, Options(device="cuda"), Record())
    assert (info["dense_seconds"], info["seconds"], info["ratio"]) == (3.5, 2.0, 1.75)
    assert "fastest" not in info


def test_one_shape_goes_before_the_next_one_comes(monkeypatch: pytest.MonkeyPatch) -> None:
    gc.disable()  # which would hide what holds itself
    try:
        duel(stub(), "linear", SUITE, "train", AUTO, Options(quick=True), Record())
        (kept,) = operands._kept.values()
        gone = weakref.ref(kept)
        del kept
        monkeypatch.setattr(operands, "Operands", lambda *_: gone())
        assert operands.operands(replace(SUITE, rows=7), "cpu", torch.float32) is None
    finally:
        gc.enable()
        operands._kept.clear()


def test_results_are_checked_at_the_first_visit_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    checked = []
    monkeypatch.setattr("benchmarks.duel.check", lambda *args: checked.append(args) or 0.0)
    record = Record()
    for _ in range(2):
        duel(bench := stub(), "linear", SUITE, "forward", AUTO, Options(quick=True), record)
    assert len(checked) == 1
    assert "error" not in bench.extra_info


def test_what_first_calls_take_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []

    class Slow(Kron):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            calls.append("ours")
            return super().forward(x)

    def make(given: Any, phase: str) -> Any:
        return lambda: calls.append("theirs") or {"output": torch.zeros(5, 12)}

    monkeypatch.setattr("benchmarks.duel.SHORT", 0.0)
    monkeypatch.setattr("benchmarks.duel._seconds", lambda step: calls.append("timed") or step() or 1.0)
    monkeypatch.setattr("benchmarks.duel._dense", make)
    monkeypatch.setattr("benchmarks.duel._dense_error", lambda given, phase: make(given, phase)() and 0.0)
    record = Record()
    for _ in range(2):
        calls.clear()
        duel(stub(), "linear", SUITE, "forward", replace(AUTO, build=Slow), Options(), record)
        assert calls[:2] == ["ours", "theirs"]
        assert calls[2] == "timed"


def test_a_stall_before_the_first_round_is_no_round(monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = iter([0.3, 0.3, 1e-3])
    monkeypatch.setattr("benchmarks.duel._seconds", lambda step: step() or next(seconds))
    info = interleave(stub(1e-3), lambda: None, lambda: None, Options(), Record())
    assert (info["rounds"], info["ratio"]) == (1, 1.0)


def test_long_steps_have_few_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.duel._seconds", lambda step: step() or 1.0)
    record, rounds = Record(), []
    for _ in range(2):
        duel(bench := stub(1.0), "linear", SUITE, "forward", AUTO, Options(), record)
        rounds.append((bench.rounds, bench.extra_info["rounds"]))
    assert rounds == [(1, 2), (1, 3)]  # the call that tells how long they take is a round too


def test_the_fastest_tenth() -> None:
    assert fastest([3.0, 1.0, 2.0]) == 1.0
    assert fastest([*map(float, range(10, 0, -1))]) == 1.0
    assert fastest([*map(float, range(11, 0, -1))]) == 2.0
    assert fastest([*map(float, range(40, 0, -1))]) == 4.0


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


def test_a_model_that_answers_otherwise_than_its_dense_form_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = {"img_size": 8, "patch_size": 4, "in_chans": 1, "width": 16, "depth": 1, "head_dim": 8}
    model, images = models.build("vit", models.BANK, "cpu", torch.float32, **sizes), torch.randn(2, 1, 8, 8)
    models.check(model, images)
    assert model.training
    monkeypatch.setattr("weit.materialize", lambda model: models.build("vit", None, "cpu", torch.float32, **sizes))
    with pytest.raises(WrongResult):
        models.check(model, images)


def test_tests_of_other_folders_may_run_beside_the_suites() -> None:
    items = [SimpleNamespace(path=Path(f"test_{name}.py")) for name in ("other", "growth", "linear")]
    config = SimpleNamespace(stash={OPTIONS: Options()})
    conftest.pytest_collection_modifyitems(config, items)
    assert [item.path.stem for item in items] == ["test_linear", "test_growth", "test_other"]
    assert set(config.stash[DEADLINES]) == {"test_linear", "test_growth"}
