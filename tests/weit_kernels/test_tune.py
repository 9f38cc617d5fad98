"""Tuning without a GPU: the contest, with clocks that are made up."""

import warnings
from collections.abc import Callable

import pytest
import torch

from weit_kernels import timings, tune

pytestmark = pytest.mark.usefixtures("own_cache")

GPU = torch.device("cuda", 0)


class Clock:
    """A timer that calls the candidate and reads its seconds off a list."""

    def __init__(self, seconds: dict[str, list[float]]) -> None:
        self.left = {name: list(values) for name, values in seconds.items()}
        self.calls: list[str] = []

    def candidate(self, name: str) -> Callable[[], str]:
        return lambda: name

    def candidates(self) -> dict[str, Callable[[], str]]:
        return {name: self.candidate(name) for name in self.left}

    def __call__(self, function: Callable[[], object]) -> float:
        name = str(function())
        self.calls.append(name)
        return self.left[name].pop(0)


def test_fastest_takes_turns_and_compares_medians() -> None:
    clock = Clock({"steady": [2.0, 2.0, 2.0], "spiky": [1.0, 90.0, 1.5], "slow": [3.0, 0.1, 3.0]})
    winner, seconds = tune.fastest(clock.candidates(), clock, rounds=3)
    assert winner == "spiky"
    assert seconds == {"steady": 2.0, "spiky": 1.5, "slow": 3.0}
    assert clock.calls == ["steady", "spiky", "slow"] * 3


@pytest.mark.parametrize("fails_at", [0, 2])
def test_a_candidate_that_raises_is_dropped_by_name(fails_at: int) -> None:
    """In the untimed call, or later."""
    calls = 0

    def broken() -> str:
        nonlocal calls
        calls += 1
        if calls > fails_at:
            raise MemoryError("out of resource: shared memory\nRequired: 300 KiB")
        return "fine"

    clock = Clock({"fine": [1.0] * 6})
    with pytest.warns(RuntimeWarning, match=r"broken is not used here: MemoryError: out of resource: shared memory$"):
        winner, seconds = tune.fastest({"broken": broken, **clock.candidates()}, clock, rounds=3)
    assert (winner, set(seconds)) == ("fine", {"fine"})


def test_nothing_that_runs_is_an_error() -> None:
    with pytest.warns(RuntimeWarning, match="x is not used"), pytest.raises(RuntimeError, match="none of the cand"):
        tune.fastest({"x": lambda: 1 / 0}, Clock({}))


def results(scale: float = 1.0) -> list[torch.Tensor | None]:
    return [scale * torch.arange(6.0).view(2, 3), None]


def test_contest_keeps_the_fastest_that_agrees() -> None:
    wrong, nan = results(1.01), [results()[0].fill_(float("nan")), None]
    runs = {"plain": results, "wrong": lambda: wrong, "fused": results, "nan": lambda: nan, "broken": lambda: 1 / 0}
    seconds = iter([3.0, 2.0] * tune.ROUNDS)  # plain, then fused
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        assert tune.contest("key", runs, results, lambda f: [f(), next(seconds)][1]) == "fused"
    names = [str(w.message).split()[1] for w in heard]
    assert names == ["wrong", "nan", "broken"]
    assert timings.cache().get("key") == timings.Entry("fused", {"plain": 3.0, "fused": 2.0})


def test_contest_without_a_plain_result_tunes_nothing() -> None:
    def truth() -> list[torch.Tensor | None]:
        raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.warns(RuntimeWarning, match="not tuned, OutOfMemoryError: CUDA out of memory: key"):
        assert tune.contest("key", {"a": results}, truth, Clock({})) == ""
    assert timings.cache().get("key") is None


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_disagreement_allows_rounding_and_no_more(dtype: torch.dtype) -> None:
    truth = torch.randn(64, 64, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    rounded = truth.to(dtype)
    eps = torch.finfo(dtype).eps
    assert tune.disagreement([rounded * (1 + eps)], [rounded]) == ""
    assert "differs by" in tune.disagreement([rounded * (1 + 600 * eps)], [rounded])
    assert "another shape" in tune.disagreement([rounded[:1]], [rounded])
    assert "another shape or dtype" in tune.disagreement([None], [rounded])
    assert tune.disagreement([torch.empty(0)], [torch.empty(0)]) == ""


def test_modes(monkeypatch: pytest.MonkeyPatch) -> None:
    assert tune.mode() == "1"
    for value in tune.MODES:
        monkeypatch.setenv("WEIT_TUNE", value)
        assert tune.mode() == value
    monkeypatch.setenv("WEIT_TUNE", "always")
    with pytest.raises(ValueError, match="WEIT_TUNE must be one of '0', '1', 'full', got 'always'"):
        tune.mode()


def test_nothing_is_timed_on_a_cpu_or_under_tracing(monkeypatch: pytest.MonkeyPatch) -> None:
    from torch._subclasses.fake_tensor import FakeTensorMode

    assert not tune.may_time(torch.device("cpu"))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    assert tune.may_time(GPU)
    with FakeTensorMode():
        assert not tune.may_time(GPU)
    for name, value in (("is_current_stream_capturing", True), ("is_available", False)):
        with monkeypatch.context() as patch:
            patch.setattr(torch.cuda, name, lambda value=value: value)
            assert not tune.may_time(GPU)
    with monkeypatch.context() as patch:
        patch.setattr(torch.compiler, "is_compiling", lambda: True)
        assert not tune.may_time(GPU)
    monkeypatch.setenv("WEIT_TUNE", "0")
    assert not tune.may_time(GPU)


class FakeEvent:
    """A CUDA event of a device on which everything takes two milliseconds."""

    def __init__(self, enable_timing: bool) -> None:
        assert enable_timing

    def record(self) -> None: ...

    def synchronize(self) -> None: ...

    def elapsed_time(self, end: "FakeEvent") -> float:
        return 2.0


def test_without_an_index_it_is_the_current_device(monkeypatch: pytest.MonkeyPatch) -> None:
    names, current = ("first kind", "second kind"), [0]
    tune._gpu_name.cache_clear()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: current[0])
    monkeypatch.setattr(torch.cuda, "get_device_name", names.__getitem__)
    for current[0], name in enumerate(names):
        assert tune.device_name(torch.device("cuda")) == name
        assert tune.device_name(GPU) == names[0]
    tune._gpu_name.cache_clear()


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """What the pretended device was kept busy for, in seconds."""
    kept: list[float] = []
    monkeypatch.setattr(torch.cuda, "Event", FakeEvent)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr(torch.cuda, "_sleep", lambda cycles: kept.append(cycles / 3e9))
    return kept


def test_the_device_is_kept_busy_until_the_host_has_launched_everything(
    pauses: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A launch that takes 10 ms, then one that takes 10 ms again, behind a device that is busy for longer."""
    monkeypatch.setattr(tune, "perf_counter", iter([0.0, 0.01, 1.0, 1.01]).__next__)
    assert tune.cuda_timer(lambda: None) == pytest.approx(2e-3)
    assert pauses == pytest.approx([1e-3, 2e-2])


def test_calls_back_to_back_take_as_long_as_their_launches(
    pauses: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tune, "perf_counter", iter([0.0, 0.6]).__next__)
    calls: list[int] = []
    assert tune.calls_timer(lambda: calls.append(1), calls=3) == pytest.approx(0.2)
    assert len(calls) == 3
    assert not pauses
