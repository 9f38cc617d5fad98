"""The GPU check, on a CPU: what is recorded when contenders fail, time runs out or processes die; goals' arithmetic."""

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.gpu import contenders, goals, machine, memory, page, parts, steps, timing, tune
from benchmarks.gpu.__main__ import parse
from benchmarks.gpu.measure import Item, Measurement, items
from benchmarks.gpu.results import Results
from benchmarks.operands import Operands, WrongResult, make_step

SHAPES = {shape.name: shape for shape in contenders.suite_shapes("cpu", quick=True)}
FOREVER = 2**40


def measurement(folder: Path, deadline: float = FOREVER) -> Measurement:
    results = Results.create(folder / "out.json", {"steps": {}})
    return Measurement(results, "cpu", torch.bfloat16, True, deadline)


def saved_row(run: Measurement, index: int = 0) -> dict[str, Any]:
    return Results.load(run.results.path).data["rows"][index]


@pytest.mark.parametrize("name", ["square_768", "resnet50_l3_3x3"])
def test_a_row_has_figures_of_every_contender(tmp_path: Path, name: str) -> None:
    run = measurement(tmp_path)
    run.run([Item(stage, SHAPES[name], "train") for stage in ("ours", "paths")])
    row = saved_row(run)
    assert row["shape"] == name
    assert row["stages"] == ["ours", "paths"]
    assert row["limit"] == SHAPES[name].limit("train")
    runnable = {"dense", "auto", "materialised", "templates_first/torch", "scalers_first/torch", "panel/torch"}
    assert runnable <= set(row["contenders"])
    for contender in runnable:
        figures = row["contenders"][contender]
        assert 0 < figures["p10"] <= figures["seconds"] <= figures["p90"]
        assert figures["rounds"] >= 7
        assert figures["ratio"] == pytest.approx(figures["dense_seconds"] / figures["seconds"])
        assert 0 < figures["error"] < 0.02
        assert figures["memory"] == "needs a GPU"
    assert set(row["contenders"]["auto"]["errors"]) == {"output", "x", "templates", "scalers", "bias"}
    assert set(row["contenders"]["dense"]["errors"]) == {"output", "x", "bias"}
    assert "CUDA" in row["contenders"]["panel/cuda"]["not_runnable"]
    assert run.results.data["running"] is None


def test_channels_last_maps_are_a_row_of_their_own(tmp_path: Path) -> None:
    run = measurement(tmp_path)
    suite = SHAPES["convnext_pw"]
    work = [item for item in items([suite]) if item.stage == "ours" and item.phase == "forward"]
    run.run(work)
    assert [row["shape"] for row in run.results.data["rows"]] == ["convnext_pw", "convnext_pw_channels_last"]
    operands = Operands(suite, "cpu", torch.bfloat16, channels_last=True)
    dense = contenders.build("dense", operands)
    assert operands.x.is_contiguous(memory_format=torch.channels_last)
    assert dense.weight.is_contiguous(memory_format=torch.channels_last)


def broken(kind: str, contender: str = "materialised") -> Any:
    """``build`` with one contender that raises, computes nonsense, or breaks once it is timed."""

    class Bad(contenders.Materialised):
        calls = 0

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            Bad.calls += 1
            if kind == "raises" or (kind == "breaks later" and Bad.calls > 2):
                raise RuntimeError("out of resources: shared memory")
            y = super().forward(x)
            return y * float("nan") if kind == "nan" else y * 1.1 if kind == "wrong" else y

    def build(name: str, operands: Operands) -> torch.nn.Module:
        return Bad(operands) if name == contender else contenders.build(name, operands)

    return build


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("raises", "RuntimeError: out of resources: shared memory"),
        ("breaks later", "RuntimeError: out of resources: shared memory"),
        ("wrong", "relative error 1.0e-01 in output, more than 2e-02: not timed"),
        ("nan", "relative error nan in output, more than 2e-02: not timed"),
    ],
)
def test_a_contender_that_fails_is_recorded_and_the_others_are_timed(tmp_path: Path, kind: str, message: str) -> None:
    run = measurement(tmp_path)
    run.build = broken(kind)
    run.run([Item("ours", SHAPES["square_768"], "forward")])
    found = saved_row(run)["contenders"]
    assert message in found["materialised"]["failed"]
    assert "seconds" not in found["materialised"]
    assert found["auto"]["ratio"] > 0
    assert goals.failures(run.results.data["rows"]) == [
        f"{found['materialised']['failed']} (1: square_768 forward materialised)"
    ]


def test_a_wrong_gradient_is_found() -> None:
    operands = Operands(SHAPES["square_768"], "cpu", torch.bfloat16)
    outputs = make_step(contenders.build("auto", operands), operands, "train")()
    assert contenders.check(outputs, operands)["error"] < 0.02
    outputs["scalers"] = outputs["scalers"].flip(0)
    with pytest.raises(WrongResult, match="in scalers"):
        contenders.check(outputs, operands)


def test_without_a_dense_time_there_is_no_ratio(tmp_path: Path) -> None:
    run = measurement(tmp_path)
    run.build = broken("raises", "dense")
    run.run([Item("ours", SHAPES["square_768"], "forward")])
    auto = saved_row(run)["contenders"]["auto"]
    assert auto["seconds"] > 0
    assert "ratio" not in auto


def test_a_later_stage_takes_no_figures_from_the_dense_layer(tmp_path: Path) -> None:
    run, suite = measurement(tmp_path), SHAPES["square_768"]
    run.run([Item("ours", suite, "forward")])
    before = saved_row(run)["contenders"]["dense"]
    run.deadline = 0.0
    run.measure(Item("paths", suite, "forward"), run.results.data["rows"][0], ["panel/torch"])
    found = saved_row(run)["contenders"]
    assert found["dense"] == before
    assert found["panel/torch"] == {"skipped": "the time was up"}
    run.deadline, run.build = FOREVER, broken("raises", "dense")
    run.measure(Item("paths", suite, "forward"), run.results.data["rows"][0], ["panel/torch"])
    found = saved_row(run)["contenders"]
    assert {**found["dense"], "failed": ""} == {**before, "failed": ""}
    assert "out of resources" in found["dense"]["failed"]
    assert "ratio" not in found["panel/torch"]


def test_cuda_graphs_need_a_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    run = measurement(tmp_path)
    run.run([Item("ours", SHAPES["policy_1024"], "graph")])
    assert "CUDA graphs need a GPU" in saved_row(run)["contenders"]["auto"]["failed"]


def test_nothing_is_measured_after_the_deadline(tmp_path: Path) -> None:
    run = measurement(tmp_path, deadline=time.time() - 1)
    run.run([Item("ours", SHAPES["square_768"], phase) for phase in ("forward", "train")])
    data = Results.load(run.results.path).data
    assert data["not_run"] == ["ours: square_768, forward", "ours: square_768, train"]
    assert all(not row["contenders"] for row in data["rows"])
    assert goals.judge(data["rows"])[0].met is None


def test_what_goals_need_is_measured_first() -> None:
    order = [item.stage for item in items(list(SHAPES.values()))]
    assert order == sorted(order, key=["ours", "paths", "compiled"].index)


def test_a_process_is_stopped_when_its_time_is_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(steps, "GRACE", 1)
    code = (
        "import signal, time; signal.signal(signal.SIGINT, signal.SIG_IGN); print('began', flush=True); time.sleep(60)"
    )
    outcome = steps.bounded([sys.executable, "-c", code], 1.0, tmp_path / "log", steps.environment())
    assert outcome.returncode is None
    assert outcome.seconds < 30
    assert outcome.output == "began\n"


def test_what_slows_the_librarys_calls_down_is_for_tests_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    monkeypatch.setenv("WEIT_TUNE", "0")
    assert steps.environment()["WEIT_TUNE"] == "0"
    assert "CUBLAS_WORKSPACE_CONFIG" not in steps.environment()
    assert steps.environment(CUBLAS_WORKSPACE_CONFIG=":16:8")["CUBLAS_WORKSPACE_CONFIG"] == ":16:8"


# Stands in for the measuring process: the contender "deadly" ends it or hangs, "good" is measured after it.
CHILD = """
import os, sys, time
from pathlib import Path
from benchmarks.gpu.results import Results
results = Results.load(Path(sys.argv[1]))
row = results.row("shape", "forward", {"few_rows": False})
for name in ("deadly", "good"):
    if name in row["contenders"]:
        continue
    results.start(row, [name])
    if name == "deadly":
        os.abort() if sys.argv[2] == "dies" else time.sleep(60)
    results.record(row, name, {"seconds": 1.0})
"""


@pytest.mark.parametrize(("how", "message"), [("dies", "the process ended with status -6"), ("hangs", "no progress")])
def test_a_lost_process_costs_one_contender(tmp_path: Path, how: str, message: str) -> None:
    path = Results.create(tmp_path / "out.json", {}).path
    command = [sys.executable, "-c", CHILD, str(path), how]
    # Three seconds are enough for the child to start: it imports no torch.
    found = steps.supervise(command, path, time.time() + 60, tmp_path, steps.environment(), stall=3.0)
    assert found["starts"] == 2
    assert found["deaths"][0]["contenders"] == ["deadly"]
    recorded = Results.load(path).data["rows"][0]["contenders"]
    assert message in recorded["deadly"]["failed"]
    assert recorded["good"] == {"seconds": 1.0}


def test_a_process_that_dies_for_no_contenders_fault_is_not_started_for_ever(tmp_path: Path) -> None:
    path = Results.create(tmp_path / "out.json", {}).path
    command = [sys.executable, "-c", "raise SystemExit('no such module')"]
    found = steps.supervise(command, path, time.time() + 60, tmp_path, steps.environment(), stall=30.0)
    assert found["starts"] == 1
    assert "no such module" in found["deaths"][0]["message"]


def test_pytest_runs_without_its_optional_plugins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(steps.importlib.util, "find_spec", lambda _: None)
    command = steps.pytest_command(["tests/weit_kernels/test_shapes.py", "-p", "no:timeout", "-p", "no:xdist"])
    done = subprocess.run([*command, "--collect-only"], cwd=machine.ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_an_interrupted_write_keeps_the_old_file(tmp_path: Path) -> None:
    results = Results.create(tmp_path / "out.json", {"commit": "abc"})
    results.data["bad"] = float("nan")
    with pytest.raises(ValueError, match="JSON"):
        results.save()
    assert Results.load(results.path).data["commit"] == "abc"


def row(shape: str, phase: str, ratio: float | None, limit: float = 2.0, **facts: Any) -> dict[str, Any]:
    auto = (
        {"failed": "no"} if ratio is None else {"ratio": ratio, "seconds": 1.0, "workspace_bytes": facts.pop("ws", 0)}
    )
    base = {"kind": "linear", "few_rows": False, "rows": 4096, "limit": limit}
    return {"shape": shape, "phase": phase, **base, **facts, "contenders": {"auto": auto}}


def verdicts(rows: list[dict[str, Any]]) -> dict[str, tuple[bool | None, str]]:
    return {goal.name: (goal.met, goal.reached) for goal in goals.judge(rows)}


def test_goals_met() -> None:
    rows = [row("a", "forward", 1.2, 1.5), row("b", "forward", 2.7), row("a", "train", 1.0), row("b", "train", 2.0)]
    few = row("c", "graph", 5.0, few_rows=True)
    found = verdicts([*rows, few])
    assert found["linear forward, geometric mean of ratios >= 1.5"] == (True, "1.80")
    assert found["linear forward, each >= 0.6 of its operation limit"] == (True, "all 2")
    assert found["linear training step, geometric mean of ratios >= 1.3"] == (True, "1.41")
    assert found["few rows, CUDA graphs, L2 flushed, geometric mean of ratios >= 4"] == (True, "5.00")
    assert found["workspace <= 32 MiB"] == (True, "most 0.0 MiB")
    assert found["conv2d forward, none < 0.95 of dense"] == (None, "nothing measured")


def test_the_page_of_a_result_has_every_contender_and_what_is_missing() -> None:
    rows = [row("a", "forward", 1.5, 3.0), row("b", "train", None)]
    rows[0]["contenders"]["panel/triton"] = {"ratio": 1.25}
    rows[1]["contenders"]["panel/cuda"] = {"failed": "it broke"}
    header = {"device": {"name": "a device"}, "dtype": "bfloat16", "versions": {"torch": "2"}, "date": "2026-01-02T03"}
    text = page.page({**header, "rows": rows, "not_run": ["compiled: b, train"]}, "a-device.json")
    assert "# The suite on a device" in text
    columns = next(line for line in text.splitlines() if line.startswith("| shape | phase | dense, ms |"))
    assert columns.split(" | ")[3:] == ["auto", "panel/triton |"]
    assert "| 1.50 | 1.25 |" in text
    assert "failed: it broke (1: b train panel/cuda)" in text
    assert "not run: compiled: b, train" in text


def test_goals_missed_name_the_shapes() -> None:
    rows = [row("a", "forward", 0.9, ws=33 << 20), row("b", "forward", 4.0), row("c", "forward", None)]
    found = verdicts(rows)
    assert found["linear forward, geometric mean of ratios >= 1.5"] == (False, "1.90 (no figure: c forward)")
    assert found["linear forward, each >= 0.6 of its operation limit"][1].startswith("a 0.90 < 1.20")
    assert found["linear forward, none < 0.95 of dense"][1].startswith("a 0.90 < 0.95")
    assert found["workspace <= 32 MiB"] == (False, "a forward 33.0 MiB (no figure: c forward)")
    assert "c forward auto" in goals.summary(rows, ["paths: a, forward"])


def test_the_table_has_a_line_for_each_row() -> None:
    lines = goals.table([row("a", "forward", 1.5, 3.0), row("b", "train", None)]).splitlines()
    assert "| 1.50 | 3.00 | 0.50 |" in lines[2]
    assert len(lines) == 4
    assert {line.count("|") for line in lines} == {15}


def test_spread() -> None:
    found = timing.spread([5.0, 1.0, 2.0, 4.0, 3.0])
    assert found == {"seconds": 3.0, "p10": pytest.approx(1.4), "p90": pytest.approx(4.6), "rounds": 5}
    assert timing.spread([2.0])["p90"] == 2.0


def test_rounds_are_interleaved_in_both_directions() -> None:
    calls: list[str] = []
    functions = {name: (lambda name=name: calls.append(name)) for name in "ab"}
    samples = timing.interleaved(functions, timing.CpuClock(), seconds=0.0, least=3)
    assert "".join(calls) == "abab" + "abbaab"
    assert len(samples["a"]) == len(samples["b"]) == 3


def test_outputs_are_set_aside_once_each() -> None:
    outputs = [torch.empty(1000, dtype=torch.uint8), torch.empty(5000, dtype=torch.uint8)]
    assert memory.largest_but_outputs([1000, 5000, 4000], outputs) == 4096
    assert memory.largest_but_outputs([5000, 5000], outputs) == 5120
    assert memory.largest_but_outputs([1000], outputs) == 0


def test_without_a_gpu_the_check_says_how_to_go_on(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit):
        parse([])
    assert "--device cpu --quick" in capsys.readouterr().err


def test_slug() -> None:
    assert machine.slug("NVIDIA H100 80GB HBM3") == "nvidia-h100-80gb-hbm3"


@pytest.mark.parametrize("text", [None, "{", "{}", "[]"])
def test_no_tuning_results_are_not_published(tmp_path: Path, text: str | None) -> None:
    cache, target = tmp_path / "tune.json", tmp_path / "configs" / "gpu.json"
    if text is not None:
        cache.write_text(text)
    with pytest.raises(ValueError, match="no tuning results"):
        tune.publish(cache, target)
    assert not target.exists()


def test_what_was_tuned_before_stays(tmp_path: Path) -> None:
    cache, target = tmp_path / "tune.json", tmp_path / "gpu.json"
    for key, count in (("a", 1), ("b", 2)):
        cache.write_text(json.dumps({"format": 1, "entries": {key: {}}}))
        assert tune.publish(cache, target) == count
        assert len(json.loads(target.read_text())["entries"]) == count
    cache.write_text(json.dumps({"format": 2, "entries": {"c": {}}}))
    with pytest.raises(ValueError, match=r"is of format 1, but what was tuned of 2"):
        tune.publish(cache, target)


def test_importing_the_package_imports_no_torch() -> None:
    code = "import benchmarks.gpu, benchmarks.gpu.results, sys; raise SystemExit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=machine.ROOT).returncode == 0


def test_header_is_json() -> None:
    header = machine.header("cpu", "bfloat16", True)
    assert header["versions"]["torch"] == torch.__version__
    assert {"commit", "dirty", "date", "device"} <= set(json.loads(json.dumps(header)))


def test_parts_of_a_step_stand_beside_the_dense_layer() -> None:
    (suite,) = [s for s in contenders.suite_shapes("cpu", quick=True) if s.name == "square_768"]
    found = parts.measure([suite], "cpu", seconds=0.001)
    for part in parts.PARTS:
        assert found["square_768"][part]["dense"] > 0
    found["square_768"]["dx"]["templates_first/triton"] = "ValueError: no"
    found["square_768"]["dx"]["panel/triton"] = found["square_768"]["dx"]["dense"] / 2
    lines = parts.table(found).splitlines()
    assert len(lines) == 2 + len(parts.PARTS)
    (dx,) = [line for line in lines if "| dx |" in line]
    assert "| failed |" in dx
    assert "| 2.00 |" in dx
