"""``weit bench`` and ``python -m benchmarks``: what they run, and what becomes of earlier results."""

import json
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("pytest_benchmark")

from benchmarks import __main__ as command
from benchmarks.results_file import Results
from tests.benchmarks.test_report import VISITS, figures, made_up
from weit.cli import main


class Suites:
    """In place of the suites: writes what they would write, with one figure; ``dirties``: code is changed meanwhile."""

    dirties = False

    def __init__(self, patch: pytest.MonkeyPatch, *, status: int = 0) -> None:
        self.calls, self.status, self.seconds, self.dirty = 0, status, 1.0, False
        patch.setattr(command.pytest, "main", self.run)
        patch.setattr(command, "get_commit_info", lambda: {"id": "0123456789abcdef", "dirty": self.dirty})
        about = made_up()["machine_info"]
        patch.setattr(command, "machine", lambda: about["weit"])
        patch.setattr(command.torch, "get_num_threads", lambda: about["threads"])

    def run(self, arguments: list[str]) -> int:
        self.calls += 1
        (part,) = (each.partition("=")[2] for each in arguments if each.startswith("--benchmark-json="))
        assert not Path(part).exists()
        self.dirty = self.dirties
        if self.status != 4:
            by_visit = [{"rounds": 5, "dense_seconds": 4.0, "seconds": self.seconds}]
            row = figures("linear", "auto", 4.0 / self.seconds, plan="panel_torch", by_visit=by_visit, **VISITS)
            began = {"datetime": f"2026-01-02T03:04:0{self.calls}"}
            benches = [{"fullname": "x", "extra_info": row}]
            Path(part).write_text(
                json.dumps({**made_up(), "commit_info": command.get_commit_info(), "benchmarks": benches} | began)
            )
        return self.status


def ratio(folder: Path) -> Any:
    return Results.read(folder / "results.json").rows[0]["ratio"]


def test_earlier_results_are_kept_beside_new_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    suites = Suites(monkeypatch)
    assert command.main(["--out", str(tmp_path)]) == 0
    first = (tmp_path / "results.json").read_text()
    suites.status = 2  # interrupted, with a part of the figures
    assert command.main(["--out", str(tmp_path)]) == 2
    (kept,) = tmp_path.glob("results-*.json")
    assert kept.read_text() == first
    assert (tmp_path / "report.html").exists()


def test_runs_are_added_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    suites = Suites(monkeypatch)
    for suites.seconds, expected in ((2.0, 2.0), (1.0, 4.0), (8.0, 4.0)):
        assert command.main(["--out", str(tmp_path), "--add"]) == 0
        assert ratio(tmp_path) == expected
    assert Results.read(tmp_path / "results.json").machine["runs"] == "3"
    assert "results.json, of 3 runs pooled" in capsys.readouterr().out
    assert [path.name for path in tmp_path.glob("*.json*")] == ["results.json"]


def test_what_cannot_be_added_is_refused_before_it_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    suites = Suites(monkeypatch)
    assert command.main(["--out", str(tmp_path)]) == 0
    monkeypatch.setattr(command, "get_commit_info", lambda: {"id": "another", "dirty": False})
    assert command.main(["--out", str(tmp_path), "--add"]) == 2
    assert suites.calls == 1
    assert "they differ in commit (0123456789ab, another)" in capsys.readouterr().out


def test_a_run_that_can_no_longer_be_added_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    suites = Suites(monkeypatch)
    assert command.main(["--out", str(tmp_path)]) == 0
    suites.dirties, suites.seconds = True, 2.0
    assert command.main(["--out", str(tmp_path), "--add"]) == 1
    (kept,) = tmp_path.glob("results-*.json")
    assert Results.read(kept).rows[0]["ratio"] == 2.0
    assert str(kept) in capsys.readouterr().out
    assert ratio(tmp_path) == 4.0


def test_what_a_killed_run_left_is_no_result_of_the_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    suites = Suites(monkeypatch)
    assert command.main(["--out", str(tmp_path)]) == 0
    (tmp_path / "results.json.part").write_text(json.dumps(made_up()))
    suites.status = 4  # wrong usage: nothing is written
    first = (tmp_path / "results.json").read_text()
    assert command.main(["--out", str(tmp_path)]) == 4
    assert (tmp_path / "results.json").read_text() == first
    assert not (tmp_path / "results.json.part").exists()
    (kept,) = tmp_path.glob("results-*.json")
    assert kept.read_text() == json.dumps(made_up())


def test_weit_bench_outside_a_checkout_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["bench"]) == 1
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "there is no benchmarks/ here" in said


def test_weit_bench_measures_and_reports(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("PYTEST_XDIST_WORKER", "PYTEST_XDIST_WORKER_COUNT"):  # beside others pytest-benchmark times nothing
        monkeypatch.delenv(name, raising=False)
    code = main(["bench", "--quick", "--suites", "conv", "--shapes", "convnext_pw", "--out", str(tmp_path)])
    said = capfd.readouterr().out
    assert code == 0, said
    assert f"Report: {tmp_path / 'report.html'}" in said
    results = Results.read(tmp_path / "results.json")
    assert {row["contender"] for row in results.rows} >= {"auto", "materialised", "panel_torch"}
    assert "Triton" in (tmp_path / "table.md").read_text()
    assert "convnext_pw" in (tmp_path / "config.yaml").read_text()


def test_wrong_usage_is_said_and_leaves_earlier_results(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    earlier = json.dumps(made_up())
    (tmp_path / "results.json").write_text(earlier)
    for wrong in (["--suites", "nosuch"], ["--suites", "conv", "--shapes", "nosuch"]):
        assert main(["bench", *wrong, "--out", str(tmp_path)]) == 1
        said = capfd.readouterr()
        assert "nosuch" in said.out + said.err
        assert "did not start" in said.err
    assert [path.name for path in tmp_path.iterdir()] == ["results.json"]
    assert (tmp_path / "results.json").read_text() == earlier


def test_weit_bench_waits_for_the_suites_when_interrupted(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    waits: list[str] = []

    class Process:
        def __init__(self, command: list[str]) -> None: ...

        def wait(self) -> int:
            waits.append("waited")
            if len(waits) == 1:
                raise KeyboardInterrupt
            return 2

    monkeypatch.setattr("weit.cli.bench.subprocess.Popen", Process)
    assert main(["bench"]) == 130
    assert len(waits) == 2
    assert "is in the report" in capsys.readouterr().err
