"""What planner and operator make of timings, with a GPU that is pretended: contenders, the contest, what runs then."""

from dataclasses import replace

import pytest
import torch

from tests.weit_kernels.cases import needs_extension
from weit_kernels import backends, plan, timings, tune
from weit_kernels.estimates import Request, estimates
from weit_kernels.paths.convolution import ConvArgs
from weit_kernels.plan import choose, contenders
from weit_kernels.shapes import KronShape

pytestmark = pytest.mark.usefixtures("own_cache")

GPU = torch.device("cuda", 0)
PLAIN = ConvArgs.plain(2)


@pytest.fixture(autouse=True)
def no_cuda_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """The pretended GPU has Triton's kernels alone, whatever this build, or a test before, has loaded."""
    monkeypatch.setattr("weit_kernels.cuda.why_not", lambda: "not in these tests")


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
        {"shape": KronShape(4, 16, 16, 64, 64, 1023, 1024)},
    ]
    conv = {"shape": KronShape(4, 16, 16, 64, 64, 1024, 1024, kernel=(3, 3))}
    moves = [replace(PLAIN, **change) for change in ({"stride": (2, 2)}, {"dilation": (2, 2)}, {"groups": 2})]
    changes += [conv, {**conv, "channels_last": True}, *({**conv, "conv": each} for each in moves)]
    keys = {request(**change).key for change in [{}, *changes]}
    assert len(keys) == 1 + len(changes)
    assert f"torch {torch.__version__} | triton " in request().key


def test_estimates_of_many_sizes_are_not_kept() -> None:
    estimates.cache_clear()
    for rows in range(200):
        assert choose(request(rows)).candidates
    assert estimates.cache_info().currsize <= 64


@pytest.mark.usefixtures("triton_runs")
def test_auto_uses_triton_only_where_a_timing_names_it() -> None:
    before = choose(request())
    assert before.backend == "torch"
    assert "not considered: not timed here yet" in before.explain()
    timings.cache().put(
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
        timings.cache().put(request().key, winner, {winner: 1e-3})
        chosen = choose(request())
        assert (chosen.backend, chosen.tuned) == ("torch", False)


@pytest.mark.usefixtures("triton_runs")
def test_contenders_are_the_nearest_and_a_plain_one() -> None:
    near = [c.name for c in contenders(request(), "1")]
    assert len(near) in (4, 5)
    assert any(name.endswith("on torch") for name in near)
    assert near[:4] == [c.name for c in choose(request()).candidates if not c.reason][:4]
    every = [c.name for c in contenders(request(), "full")]
    assert len(every) == 5
    assert set(near) <= set(every)
    assert {c.backend for c in contenders(request(backend="triton"), "1")} == {"triton"}


@pytest.mark.usefixtures("triton_runs")
def test_compiled_kernels_are_timed_beside_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    without = request().key
    monkeypatch.setattr("weit_kernels.cuda.why_not", lambda: "")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    estimates.cache_clear()
    now = {c.name for c in contenders(request(), "1")}
    assert "templates_first on cuda" in now
    assert any(name.endswith("on triton") for name in now)
    assert any(name.endswith("on torch") for name in now)
    assert request().key != without  # what was timed without them does not count
    estimates.cache_clear()


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
        timings.cache().put(key, "panel on torch", dict.fromkeys(runs, 1.0))
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
    # Few rows without gradients take what their launches take.
    used, unused = ("cuda_timer", "calls_timer") if train else ("calls_timer", "cuda_timer")
    monkeypatch.setattr(tune, used, lambda run: 1.0 if run.args[0] is templates_first else 2.0 + bool(run()))
    monkeypatch.setattr(tune, unused, lambda run: pytest.fail(f"{unused} was used"))
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


@pytest.mark.parametrize("batch", [1, 2])  # pixels of one map are rows without a copy
@pytest.mark.parametrize("path", ["templates_first", "scalers_first", "on_the_fly", "panel"])
def test_backends_run_what_the_planner_says_they_can(path: str, batch: int) -> None:
    """Linear, pointwise and other convolutions on every backend that does not refuse them, against the definition."""
    from weit_kernels import kron_conv2d, kron_linear, reference
    from weit_kernels.shapes import BACKENDS

    x, T, S = torch.randn(batch, 8, 3, 4), torch.randn(2, 3, 4, 1, 1), torch.randn(2, 2, 2)
    rows = x.movedim(1, -1).reshape(-1, 8)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    x, T, S, rows = (t.to(device) for t in (x, T, S, rows))
    ran = 0
    for backend in BACKENDS[1:]:
        for kernel, stride in ((), 1), ((1, 1), 1), ((1, 1), 2):
            choice = {"path": path, "backend": backend}
            form = backends.Form.of(kernel, ConvArgs((stride,) * len(kernel), (0,) * len(kernel), (1,) * len(kernel)))
            refused = backends.why_not(path, backend, torch.device(device), torch.float32, form)

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


@needs_extension
@pytest.mark.parametrize("conv", [False, True])
def test_a_path_is_checked_as_what_it_runs_as(conv: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Interleaved linear layers, and pixels that are such rows, exchange the factors and so the two orders."""
    from weit_kernels import cpp, kron_conv2d, kron_linear, reference

    monkeypatch.setattr(cpp, "PATHS", {"templates_first": cpp.PATHS["templates_first"]})
    x, T, S = torch.randn(2, 8, 3, 5), torch.randn(2, 3, 4), torch.randn(2, 2, 2)
    rows = x.movedim(1, -1)
    truth = reference.kron_linear(rows, T, S, layout="interleaved")

    def call(path: str) -> torch.Tensor:
        choice = {"layout": "interleaved", "path": path, "backend": "cpp"}
        if not conv:
            return kron_linear(rows, T, S, **choice)
        maps = x.contiguous(memory_format=torch.channels_last)
        return kron_conv2d(maps, T[..., None, None], S, **choice).movedim(1, -1)

    assert tune.disagreement([call("scalers_first")], [truth]) == ""
    says = r"path='templates_first' \(interleaved, so scalers_first .*has no compiled kernels; .*scalers_first on cpp"
    with pytest.raises(RuntimeError, match=says):
        call("templates_first")


def test_what_a_gpu_can_run_is_asked_of_the_one_that_has_the_tensors(monkeypatch: pytest.MonkeyPatch) -> None:
    capabilities = {0: (7, 5), 1: (9, 0)}
    monkeypatch.setattr("weit_kernels.cuda.why_not", lambda: "")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(
        torch.cuda, "get_device_capability", lambda device=None: capabilities[device.index if device else 0]
    )
    backends.require_runnable("templates_first", "cuda", torch.device("cuda", 1), torch.bfloat16)
    with pytest.raises(RuntimeError, match=r"cannot run: the CUDA kernels need compute capability 8\.0"):
        backends.require_runnable("templates_first", "cuda", torch.device("cuda", 0), torch.bfloat16)


def test_a_fused_path_is_predicted_not_to_move_its_intermediate() -> None:
    chosen = plan(65536, (4, 16, 16), (64, 64), torch.bfloat16, "cuda")
    predicted = {(c.path, c.backend): c.seconds for c in chosen.candidates if not c.reason}
    if ("templates_first", "triton") not in predicted:
        pytest.skip("Triton is not installed")
    for path in ("templates_first", "scalers_first"):
        assert predicted[path, "triton"] < predicted[path, "torch"]
