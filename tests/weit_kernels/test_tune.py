"""Tuning without a GPU: the cache on disk, the contest with clocks that are made up, and what the planner makes of it."""

import json
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from weit_kernels import backends, plan, tune
from weit_kernels.plan import Request, _estimates, choose, contenders
from weit_kernels.shapes import KronShape

pytestmark = pytest.mark.usefixtures("own_cache")

GPU = torch.device("cuda", 0)
SECONDS = {"a": 2.0, "b": 1.0}


@pytest.fixture(autouse=True)
def no_cuda_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """The pretended GPU has Triton's kernels alone, whatever this build, or a test before, has loaded."""
    monkeypatch.setattr("weit_kernels.cuda.why_not", lambda: "not in these tests")


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
    assert tune.cache().get("key") == tune.Entry("fused", {"plain": 3.0, "fused": 2.0})


def test_contest_without_a_plain_result_tunes_nothing() -> None:
    def truth() -> list[torch.Tensor | None]:
        raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.warns(RuntimeWarning, match="not tuned, OutOfMemoryError: CUDA out of memory: key"):
        assert tune.contest("key", {"a": results}, truth, Clock({})) == ""
    assert tune.cache().get("key") is None


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


def test_entries_outlive_the_process(own_cache: Path) -> None:
    tune.cache().put("key", "b", SECONDS)
    assert tune.Cache(own_cache).get("key") == tune.Entry("b", SECONDS)
    assert tune.Cache(own_cache).get("other key") is None
    assert sorted(f.name for f in own_cache.parent.iterdir()) == ["tune.json", "tune.json.lock"]


@pytest.mark.parametrize(
    "text",
    [
        "",
        '{"format": 1, "entries": {"key": ',
        "[]",
        '{"format": 2, "entries": {}}',
        '{"entries": {}}',
        '{"format": 1, "entries": {"key": {"winner": "c", "seconds": {"a": 1.0}}}}',
        '{"format": 1, "entries": {"key": {"winner": "a", "seconds": {"a": NaN}}}}',
        '{"format": 1, "entries": {"key": {"winner": "a", "seconds": {"a": "fast"}}}}',
        '{"format": 1, "entries": {"key": {"winner": ["a"], "seconds": {"a": 1.0}}}}',
        '{"format": 1, "entries": {"key": "a"}}',
    ],
)
def test_a_damaged_or_foreign_cache_is_ignored_with_one_warning(own_cache: Path, text: str) -> None:
    own_cache.parent.mkdir()
    own_cache.write_text(text)
    with pytest.warns(RuntimeWarning, match=r"tuning cache .*tune\.json is ignored"):
        assert tune.cache().get("key") is None
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert tune.Cache(own_cache).get("key") is None
    tune.cache().put("key", "b", SECONDS)
    assert tune.Cache(own_cache).get("key") == tune.Entry("b", SECONDS)


def test_a_damaged_entry_costs_only_itself(own_cache: Path) -> None:
    good = '"good": {"winner": "b", "seconds": {"a": 2.0, "b": 1.0}}'
    own_cache.parent.mkdir()
    own_cache.write_text('{"format": 1, "entries": {"bad": {"winner": "c", "seconds": {}}, ' + good + "}}")
    with pytest.warns(RuntimeWarning, match=r"an entry of the tuning cache .*tune\.json is ignored"):
        assert tune.cache().get("good") == tune.Entry("b", {"a": 2.0, "b": 1.0})
    assert tune.cache().get("bad") is None


def test_a_cache_that_is_no_text_is_ignored(own_cache: Path) -> None:
    own_cache.parent.mkdir()
    own_cache.write_bytes(b"\xff\xfe\x00")
    with pytest.warns(RuntimeWarning, match="is ignored"):
        assert tune.cache().get("key") is None


def test_an_interrupted_write_leaves_the_old_cache(own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tune.cache().put("old", "b", SECONDS)

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(tune.os, "replace", interrupted)
        with pytest.raises(KeyboardInterrupt):
            tune.cache().put("new", "a", SECONDS)
    after = tune.Cache(own_cache)
    assert after.get("old") == tune.Entry("b", SECONDS)
    assert after.get("new") is None
    assert not list(own_cache.parent.glob("*.part"))


def test_a_folder_that_cannot_be_written_costs_one_warning(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    cache = tune.Cache(tmp_path / "file" / "tune.json")
    with pytest.warns(RuntimeWarning, match="cannot be kept"):
        cache.put("key", "b", SECONDS)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        cache.put("key", "a", SECONDS)
    assert cache.get("key") == tune.Entry("a", SECONDS)


def test_concurrent_processes_lose_nothing(own_cache: Path) -> None:
    script = (
        "import sys; from weit_kernels import tune\n"
        "for i in range(40): tune.cache().put(f'{sys.argv[1]} {i}', 'a', {'a': float(i)})\n"
    )
    writers = [subprocess.Popen([sys.executable, "-c", script, name]) for name in ("one", "two")]
    assert [writer.wait(timeout=120) for writer in writers] == [0, 0]
    kept = tune.Cache(own_cache)
    assert all(
        kept.get(f"{name} {i}") == tune.Entry("a", {"a": float(i)}) for name in ("one", "two") for i in range(40)
    )


def test_the_later_of_two_writers_counts(own_cache: Path) -> None:
    first, second = tune.Cache(own_cache), tune.Cache(own_cache)
    first.put("key", "a", SECONDS)
    second.put("key", "b", SECONDS)
    first.put("other", "a", SECONDS)
    for cache in (first, tune.Cache(own_cache)):
        assert cache.get("key") == tune.Entry("b", SECONDS)


def test_shipped_results_serve_where_the_user_has_none(own_cache: Path, tmp_path: Path) -> None:
    tune.Cache(tmp_path / "configs" / "device.json").put("both", "a", SECONDS)
    tune.Cache(tmp_path / "configs" / "device.json").put("shipped", "a", SECONDS)
    tune.cache().put("both", "b", SECONDS)
    assert tune.cache().get("both") == tune.Entry("b", SECONDS)
    assert tune.cache().get("shipped") == tune.Entry("a", SECONDS)
    assert set(json.loads(own_cache.read_text())["entries"]) == {"both"}


def test_where_the_cache_lies(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert tune.cache() is tune.cache()
    monkeypatch.delenv("WEIT_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert tune.cache().path == tmp_path / "weit" / "tune.json"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert tune.cache().path == tmp_path / "home" / ".cache" / "weit" / "tune.json"


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

    assert not tune.may_time(torch.ones(1))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    assert tune.may_time(GPU)
    with FakeTensorMode():
        assert not tune.may_time(torch.empty(1, device="cuda"))
    for name, value in (("is_current_stream_capturing", True), ("is_available", False)):
        with monkeypatch.context() as patch:
            patch.setattr(torch.cuda, name, lambda value=value: value)
            assert not tune.may_time(GPU)
    with monkeypatch.context() as patch:
        patch.setattr(torch.compiler, "is_compiling", lambda: True)
        assert not tune.may_time(GPU)
    monkeypatch.setenv("WEIT_TUNE", "0")
    assert not tune.may_time(GPU)


def request(rows: int = 4096, **changes: object) -> Request:
    shape = KronShape(4, 16, 16, 64, 64, 1024, 1024)
    return Request(**{"shape": shape, "rows": rows, "dtype": torch.bfloat16, "device": GPU, "train": True} | changes)


@pytest.fixture
def triton_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("triton", reason="Triton is not installed")
    monkeypatch.setattr(backends, "_paths", lambda backend: frozenset(("templates_first", "scalers_first")))


def test_rows_share_a_key_by_powers_of_two_and_nothing_else_is_shared() -> None:
    assert request(1025).key == request(2048).key != request(1024).key
    changes = [
        {"train": False},
        {"dtype": torch.float16},
        {"backend": "triton"},
        {"path": "panel"},
        {"groups": 2},
        {"shape": KronShape(4, 16, 16, 64, 64, 1023, 1024)},
        {"shape": KronShape(4, 16, 16, 64, 64, 1024, 1024, kernel=(3, 3))},
    ]
    changes[4]["shape"] = changes[-1]["shape"]
    keys = {request(**change).key for change in [{}, *changes]}
    assert len(keys) == 1 + len(changes)
    assert f"torch {torch.__version__} | triton " in request().key


@pytest.mark.usefixtures("triton_runs")
def test_auto_uses_triton_only_where_a_timing_names_it() -> None:
    before = choose(request())
    assert before.backend == "torch"
    assert "not considered: not timed here yet" in before.explain()
    tune.cache().put(
        request().key, "scalers_first on triton", {"scalers_first on triton": 1e-3, "panel on torch": 2e-3}
    )
    after = choose(request())
    assert (after.path, after.backend, after.tuned) == ("scalers_first", "triton", True)
    assert "chosen by timing" in after.explain()
    assert "timed 1.000 ms  <- chosen" in after.explain()
    assert "timed 2.000 ms" in after.explain()
    assert choose(request(4097)).backend == "torch"


@pytest.mark.usefixtures("triton_runs")
def test_a_winner_that_cannot_run_here_is_passed_over() -> None:
    for winner in ("on_the_fly on cuda", "panel"):
        tune.cache().put(request().key, winner, {winner: 1e-3})
        chosen = choose(request())
        assert (chosen.backend, chosen.tuned) == ("torch", False)


@pytest.mark.usefixtures("triton_runs")
def test_contenders_are_the_nearest_and_a_plain_one() -> None:
    near = [c.name for c in contenders(request(), "1")]
    assert len(near) in (3, 4)
    assert any(name.endswith("on torch") for name in near)
    assert near[:3] == [c.name for c in choose(request()).candidates if not c.reason][:3]
    every = [c.name for c in contenders(request(), "full")]
    assert len(every) == 5
    assert set(near) <= set(every)
    assert {c.backend for c in contenders(request(backend="triton"), "1")} == {"triton"}


@pytest.mark.usefixtures("triton_runs")
def test_compiled_kernels_are_timed_beside_triton_on_the_nearest_paths(monkeypatch: pytest.MonkeyPatch) -> None:
    without = request().key
    near = {c.name for c in contenders(request(), "1")}
    monkeypatch.setattr("weit_kernels.cuda.why_not", lambda: "")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    _estimates.cache_clear()
    now = {c.name for c in contenders(request(), "1")}
    paths = {name.partition(" ")[0] for name in near}
    assert now - near == {f"{path} on cuda" for path in ("templates_first", "panel") if path in paths}
    assert near <= now
    assert request().key != without  # what was timed without them does not count
    _estimates.cache_clear()


@pytest.mark.usefixtures("triton_runs")
def test_the_operator_times_once_for_a_shape(monkeypatch: pytest.MonkeyPatch) -> None:
    """The operator's part on CPU tensors that claim to be on a GPU: the contest's timer is made up."""
    from weit_kernels import choice
    from weit_kernels.paths import PATHS

    x, T, S = torch.randn(16, 12), torch.randn(2, 3, 4), torch.randn(2, 5, 3)
    asked, contests = request(16, shape=KronShape(2, 5, 3, 3, 4, 15, 12), dtype=torch.float32), []

    def contest(key, runs, truth, timer=None):
        contests.append(set(runs))
        plain = {name: run for name, run in runs.items() if name.endswith("torch")}
        for run in plain.values():
            assert tune.disagreement(run(), truth()) == ""
            assert [tuple(t.shape) for t in run()] == [(16, 15), (16, 12), (2, 3, 4), (2, 5, 3)]
        tune.cache().put(key, "panel on torch", dict.fromkeys(runs, 1.0))
        return "panel on torch"

    monkeypatch.setattr(tune, "contest", contest)
    before = torch.get_rng_state()
    chosen = choice._tuned(asked, choose(asked), choice.LinearCalls, x, T, S, 15, ())
    assert torch.equal(torch.get_rng_state(), before)
    assert (chosen.path, chosen.tuned, len(contests)) == ("panel", True, 1)
    assert choice.module(chosen.path, chosen.backend) is PATHS["panel"]


@pytest.mark.filterwarnings(
    "ignore:weit. scalers_first"
)  # its backward pass runs the other kernel, which is made wrong
@pytest.mark.parametrize("train", [False, True])
def test_interpreted_kernels_win_only_by_agreeing(train: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """The whole contest, with the Triton kernels as they are; then with one of them wrong."""
    pytest.importorskip("triton", reason="Triton is not installed")
    if torch.cuda.is_available():
        pytest.skip("Triton's interpreter is for machines without a GPU")
    from weit_kernels import choice
    from weit_kernels.triton import templates_first

    monkeypatch.setenv("WEIT_TUNE", "full")
    monkeypatch.setattr(tune, "cuda_timer", lambda run: 1.0 if run.args[0] is templates_first else 2.0 + bool(run()))
    x, T, S = torch.randn(6, 12), torch.randn(2, 3, 4), torch.randn(2, 5, 3)
    asked = request(6, shape=KronShape(2, 5, 3, 3, 4, 15, 12), dtype=torch.float32, train=train)

    chosen = choice._tuned(asked, choose(asked), choice.LinearCalls, x, T, S, 15, ())
    assert (chosen.path, chosen.backend, chosen.tuned) == ("templates_first", "triton", True)
    timed = {c.name for c in chosen.candidates if c.timed is not None}
    assert timed == {c.name for c in chosen.candidates if not c.reason}

    honest = templates_first.linear
    monkeypatch.setattr(templates_first, "linear", lambda *args: 1.001 * honest(*args))
    with pytest.warns(RuntimeWarning, match="templates_first on triton is not used here: result 0 differs"):
        again = choice._tuned(asked, choose(asked), choice.LinearCalls, x, T, S, 15, ())
    assert (again.path, again.backend) != ("templates_first", "triton")


@pytest.mark.parametrize("path", ["templates_first", "scalers_first", "on_the_fly", "panel"])
def test_backends_run_what_the_planner_says_they_can(path: str) -> None:
    """Linear, pointwise and other convolutions on every backend that does not refuse them, against the definition."""
    from weit_kernels import kron_conv2d, kron_linear, reference
    from weit_kernels.shapes import BACKENDS

    x, T, S = torch.randn(2, 8, 3, 4), torch.randn(2, 3, 4, 1, 1), torch.randn(2, 2, 2)
    rows = x.movedim(1, -1).reshape(-1, 8)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    x, T, S, rows = (t.to(device) for t in (x, T, S, rows))
    ran = 0
    for backend in BACKENDS[1:]:
        for kernel, stride, pointwise in ((), 1, True), ((1, 1), 1, True), ((1, 1), 2, False):
            choice = {"path": path, "backend": backend}
            refused = backends.why_not(path, backend, device, torch.float32, kernel=kernel, pointwise=pointwise)

            def call(kernel=kernel, stride=stride, choice=choice):
                if not kernel:
                    return kron_linear(rows, T[..., 0, 0], S, **choice)
                return kron_conv2d(x, T, S, stride=stride, **choice)

            if refused:
                with pytest.raises(RuntimeError, match="cannot run"):
                    call()
                continue
            truth = (
                reference.kron_conv(x, T, S, stride=stride) if kernel else reference.kron_linear(rows, T[..., 0, 0], S)
            )
            assert tune.disagreement([call()], [truth]) == ""
            ran += 1
    assert ran


def test_a_fused_path_is_predicted_not_to_move_its_intermediate() -> None:
    chosen = plan(65536, (4, 16, 16), (64, 64), torch.bfloat16, "cuda")
    predicted = {(c.path, c.backend): c.seconds for c in chosen.candidates if not c.reason}
    if ("templates_first", "triton") not in predicted:
        pytest.skip("Triton is not installed")
    for path in ("templates_first", "scalers_first"):
        assert predicted[path, "triton"] < predicted[path, "torch"]
