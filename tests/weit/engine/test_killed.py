"""SIGKILL at any moment, then resume: the end is that of a run that was left alone, to the bit."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.weit.engine import scenarios
from tests.weit.engine.launch import ENVIRONMENT, ROOT, TORCHRUN, forked
from tests.weit.engine.launch import scenarios as on_two_processes

pytestmark = pytest.mark.timeout(900)

MOMENTS = ["3", "7", "half a file", "before the name", "half of an old one"]


def a_moment(longest: float) -> float:
    """Seconds, said where a failed test shows them."""
    chosen = random.uniform(0, longest)
    print(f"killed after {chosen} seconds")
    return chosen


def same_end(killed: Path, whole: Path, **changes: int) -> None:
    resumed, again = scenarios.dense(killed, resume=True, **changes)
    expected, history = scenarios.dense(whole, **changes)
    for a, b in zip(resumed.state_dict().values(), expected.state_dict().values(), strict=True):
        assert torch.equal(a, b)
    assert again == history
    assert (killed / "metrics.jsonl").read_bytes() == (whole / "metrics.jsonl").read_bytes()
    assert not list((killed / "checkpoints").glob(".*"))


@pytest.mark.parametrize("moment", MOMENTS)
def test_killed_at_a_known_moment(moment: str, tmp_path: Path) -> None:
    process = forked(scenarios.killed, tmp_path / "killed", moment)
    process.join()
    assert process.exitcode == -signal.SIGKILL
    found = sorted(path.name for path in (tmp_path / "killed/checkpoints").glob("step_*"))
    last = {"3": None, "half of an old one": "step_00000008"}.get(moment, "step_00000004")
    assert (found[-1] if found else None) == last
    same_end(tmp_path / "killed", tmp_path / "whole", keep_checkpoints=1 if moment == "half of an old one" else 2)


def test_killed_at_a_random_moment(tmp_path: Path) -> None:
    process = forked(scenarios.slowly, tmp_path)
    while not (tmp_path / "run/config.yaml").exists():
        time.sleep(0.01)
        assert process.is_alive()
    time.sleep(a_moment(1.2))
    process.kill()
    process.join()
    same_end(tmp_path / "run", tmp_path / "whole")


@pytest.mark.slow
@pytest.mark.parametrize("moment", range(3))
def test_two_processes_killed_at_a_random_moment(moment: int, tmp_path: Path) -> None:
    words = [sys.executable, "-m", *TORCHRUN, "tests.weit.engine.scenarios", str(tmp_path), "slowly"]
    launcher = subprocess.Popen(words, cwd=ROOT, env=ENVIRONMENT, stderr=subprocess.DEVNULL)
    while not (tmp_path / "run/config.yaml").exists():
        time.sleep(0.01)
        assert launcher.poll() is None
    time.sleep(a_moment(1.5))
    launcher.kill()
    for file in tmp_path.glob("*.pid"):
        os.kill(int(file.stem), signal.SIGKILL)
    launcher.wait()
    done = on_two_processes(tmp_path, "slowly_resumed", "slowly_whole")
    assert done.returncode == 0, done.stderr
    resumed, whole = (load_file(tmp_path / f"slowly_{name}.safetensors") for name in ("resumed", "whole"))
    assert all(torch.equal(whole[key], resumed[key]) for key in whole)
