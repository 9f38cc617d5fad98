"""A comparison's folder is one comparison's at a time."""

import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.weit.compare.miniature import Here
from weit.compare import CompareConfig, compare, folder
from weit.compare.folder import check_folder, held

pytest.importorskip("fcntl")


def test_a_second_comparison_is_refused_before_it_changes_anything(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with held(tmp_path / "out"):
        there = {path: path.stat() for path in (tmp_path / "out").iterdir()}
        with pytest.raises(BlockingIOError, match=r"another comparison is running in .*out"):
            compare(CompareConfig(out=tmp_path / "out"), Here(tmp_path / "out"), flags={"seeds": 1})
        assert {path: path.stat() for path in (tmp_path / "out").iterdir()} == there
    check_folder(tmp_path / "out")
    with held(tmp_path / "out"):
        pass


def test_without_locks_nobody_is_kept_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folder, "fcntl", None)
    with held(tmp_path), held(tmp_path):
        shutil.rmtree(tmp_path)


def test_a_killed_comparison_leaves_no_lock(tmp_path: Path) -> None:
    program = f"""
import pathlib, time
from weit.compare.folder import held
with held(pathlib.Path({str(tmp_path)!r})):
    print("held", flush=True)
    time.sleep(60)
"""
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        with pytest.raises(BlockingIOError, match="another comparison is running"), held(tmp_path):
            pass
        other.send_signal(signal.SIGKILL)
    with held(tmp_path):
        assert (tmp_path / "weit-compare.json").read_text() == "{}\n"
