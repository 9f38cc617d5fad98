"""The demo in miniature: from data to report, again without work, and never into somebody's folder."""

import json
from pathlib import Path

import pytest

from weit.cli import main
from weit.compare.folder import held

FLAGS = ["--targets", "32x1", "16x2", "--size", "32x2", "--smaller", "16x1", "--source-size", "32x2", "--pretrain-steps",
         "8", "--steps", "4", "--fit-steps", "2", "--evaluate-every", "2", "--seeds", "2", "--lrs", "0.002", "0.004",
         "--workers", "1"]  # fmt: skip


def test_demo_from_data_to_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "demo"
    assert main(["demo", "--out", str(out), *FLAGS]) == 0
    printed = capsys.readouterr().out
    for word in ("32x1", "16x2", "scratch", "weight selection", "WeiT", "the same weights"):
        assert word in printed
    assert (out / "report.html").stat().st_size > 10_000
    assert [path.read_bytes()[:4] for path in sorted(out.glob("*.png"))] == [b"\x89PNG"] * 2
    results = (out / "results.json").read_bytes()
    assert json.loads(results)
    cells = {path: path.stat().st_mtime_ns for path in (out / "cells").rglob("*.json")}
    assert len(cells) >= 2 * 3 * 2
    assert main(["demo", "--out", str(out), *FLAGS]) == 0
    assert {path: path.stat().st_mtime_ns for path in (out / "cells").rglob("*.json")} == cells


def test_a_folder_with_other_things_is_left_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    for extra in ([], ["--fresh"]):
        assert main(["demo", "--out", str(tmp_path), *FLAGS, *extra]) == 1
        assert "holds something else" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_fresh_deletes_no_folder_that_a_comparison_runs_in(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with held(tmp_path):
        assert main(["demo", "--out", str(tmp_path), *FLAGS, "--fresh"]) == 1
    assert f"another comparison is running in {tmp_path}" in capsys.readouterr().err
    assert (tmp_path / "weit-compare.json").is_file()


def test_fresh_deletes_no_folder_that_it_shall_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "demo"
    (out / "bank").mkdir(parents=True)
    (out / "weit-compare.json").write_text("{}")
    for name in ("bank", "source", "small"):
        assert main(["demo", "--out", str(out), *FLAGS, "--fresh", f"--{name}", str(out / "bank")]) == 1
        assert f"{name} must lie elsewhere, as fresh deletes {out}" in capsys.readouterr().err
    assert (out / "bank").is_dir()
