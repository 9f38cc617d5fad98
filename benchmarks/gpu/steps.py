"""Processes with a time limit: the build, the tests, and the measuring process that is started again when it dies."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.gpu.machine import ROOT
from benchmarks.gpu.results import Results

GRACE = 10  # seconds between asking a process to stop and killing it
MOST_STARTS = 40
STALL = 100  # seconds without a new line in the result file after which the contender under way is given up
TESTS = {  # what only a GPU can tell comes first
    "tests marked gpu": ["tests/weit_kernels", "-m", "gpu"],
    "tests of the Triton kernels": ["tests/weit_kernels/triton", "-m", "not slow and not gpu and not triton_all"],
    "all combinations for the Triton kernels": ["tests/weit_kernels/triton", "-m", "triton_all"],
    "other tests of the operator": [
        "tests/weit_kernels",
        "--ignore=tests/weit_kernels/triton",
        "-m",
        "not slow and not gpu",
    ],
}


@dataclass(frozen=True)
class Outcome:
    """How a process ended; ``returncode`` is ``None`` if it was stopped for its time."""

    returncode: int | None
    seconds: float
    output: str

    def facts(self, **more: Any) -> dict[str, Any]:
        """For the result file."""
        return {"returncode": self.returncode, "seconds": round(self.seconds, 1), **more}


def environment(**changes: str) -> dict[str, str]:
    """That of this process, in which both packages are found whether they are installed or not.

    Without what makes cuBLAS repeat its bits: with it each of torch's calls takes the host some 100 µs more.
    """
    path = os.pathsep.join([str(ROOT), str(ROOT / "python"), *filter(None, [os.environ.get("PYTHONPATH")])])
    kept = {name: value for name, value in os.environ.items() if name != "CUBLAS_WORKSPACE_CONFIG"}
    return {**kept, "PYTHONPATH": path, **changes}


def start(command: Sequence[str], log: Path, env: Mapping[str, str]) -> subprocess.Popen[bytes]:
    """Start a process in a group of its own, its output going to ``log``."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("wb") as file:
        return subprocess.Popen(
            command, cwd=ROOT, env=dict(env), stdout=file, stderr=subprocess.STDOUT, start_new_session=True
        )


def stop(process: subprocess.Popen[bytes], polite: bool = True) -> None:
    """End a process and all it started: first asked (pytest then still prints what failed), then killed."""
    if polite and process.poll() is None:
        os.killpg(process.pid, signal.SIGINT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(GRACE)
    with contextlib.suppress(ProcessLookupError):  # the group may be gone
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def bounded(command: Sequence[str], seconds: float, log: Path, env: Mapping[str, str]) -> Outcome:
    """Run a process for ``seconds`` at most."""
    began = time.monotonic()
    process = start(command, log, env)
    try:
        returncode: int | None = process.wait(max(0.0, seconds))
    except subprocess.TimeoutExpired:
        returncode = None
    finally:
        stop(process)
    return Outcome(returncode, time.monotonic() - began, log.read_text(errors="replace"))


def build(seconds: float, logs: Path) -> dict[str, Any]:
    """Install the package in place with its compiled part; without success the pure Python one is used."""
    pip = [sys.executable, "-m", "pip", "install", "-v", "--no-build-isolation", "--no-deps", "-e", "."]
    outcome = bounded(pip, seconds, logs / "build.log", environment())
    said = [line.strip() for line in outcome.output.splitlines() if line.strip().startswith("weit: ")]
    return outcome.facts(said=said, tail=[] if outcome.returncode == 0 else outcome.output.splitlines()[-8:])


def pytest_command(arguments: Sequence[str]) -> list[str]:
    """pytest without what is not installed here: its plugins are optional, its settings name their options."""
    command = [sys.executable, "-m", "pytest", "-q", "--tb=short", "-p", "no:cacheprovider"]
    command += ["--continue-on-collection-errors", *arguments]
    if importlib.util.find_spec("pytest_timeout") is None:  # else `timeout` in pyproject.toml is an unknown option
        command += ["-o", "addopts=--import-mode=importlib"]
    if importlib.util.find_spec("xdist") is not None:
        command += ["-n", str(max(1, min(6, (os.cpu_count() or 1) // 2)))]
    return command


def run_tests(seconds: float, logs: Path, selection: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    """Run the tests, one selection after the other, each with what is left of the time."""
    # cuBLAS refuses to work in torch's deterministic mode without this; tests switch that mode on.
    env = environment(WEIT_TUNE="0", CUBLAS_WORKSPACE_CONFIG=":4096:8")
    end = time.monotonic() + seconds
    found: dict[str, Any] = {}
    for number, (name, arguments) in enumerate(selection.items()):
        left = end - time.monotonic()
        if left < 2 * GRACE:
            found[name] = {"returncode": None, "seconds": 0.0, "summary": "not run: the time was up"}
            continue
        outcome = bounded(pytest_command(arguments), left - GRACE, logs / f"tests-{number}.log", env)
        lines = outcome.output.strip().splitlines() or [""]
        failed = [line[:300] for line in lines if line.startswith(("FAILED ", "ERROR "))]
        summary = lines[-1].strip("= ")
        if outcome.returncode is None:
            summary = f"cut short after {outcome.seconds:.0f} s: {summary}"
        found[name] = outcome.facts(summary=summary, failed=failed[:40])
    return found


def measure(
    results: Path, arguments: Sequence[str], deadline: float, logs: Path, env: Mapping[str, str], stall: float = STALL
) -> dict[str, Any]:
    """Run ``benchmarks.gpu.measure`` to its end, starting it again when a contender ends it or hangs."""
    command = [sys.executable, "-m", "benchmarks.gpu.measure", str(results), *arguments]
    return supervise([*command, "--deadline", str(deadline)], results, deadline, logs, env, stall)


def supervise(
    command: Sequence[str], path: Path, deadline: float, logs: Path, env: Mapping[str, str], stall: float
) -> dict[str, Any]:
    """Start ``command`` until it ends well, fails for no contender's fault, or ``deadline`` passes.

    What the result file names as running when the process dies, or shows no progress for ``stall`` seconds, is recorded
    as failed, and the next process leaves it out.
    """
    starts, deaths = 0, []
    while True:
        log = logs / f"measure-{starts}.log"
        process = start(command, log, env)
        starts += 1
        cause = _watch(process, path, deadline, stall)
        output = log.read_text(errors="replace").strip().splitlines()
        if not cause and process.returncode == 0:
            break
        if cause == "time":
            results = Results.load(path)
            results.data["running"] = None
            results.data["not_run"].append("what was under way when the time was up and all after it")
            results.save()
            break
        message = cause or f"the process ended with status {process.returncode}: {' | '.join(output[-2:])}"
        blamed = Results.load(path).blame_running(message)
        deaths.append({"contenders": blamed, "message": message[:600]})
        # Status 3: the contender is on record already, only the device must be opened anew.
        if (not blamed and process.returncode != 3) or time.time() > deadline or starts == MOST_STARTS:
            break
    return {"starts": starts, "deaths": deaths}


def _watch(process: subprocess.Popen[bytes], path: Path, deadline: float, stall: float) -> str:
    """Wait for the process; ``""`` if it ended by itself, else why it was stopped."""
    began = time.time()
    try:
        while process.poll() is None:
            time.sleep(0.2)
            now = time.time()
            if now > deadline + GRACE:
                return "time"
            if now - max(began, path.stat().st_mtime) > stall:
                return f"no progress for {stall:.0f} s: stopped"
        return ""
    finally:
        stop(process, polite=False)


def print_outcome(name: str, facts: Mapping[str, Any]) -> None:
    """One line for a step, and what it said."""
    end = "cut short" if facts["returncode"] is None else "ok" if facts["returncode"] in (0, 5) else "FAILED"
    print(f"{name}: {end} after {facts['seconds']:.0f} s. {facts.get('summary', '')}")
    for line in (*facts.get("said", ()), *facts.get("failed", ()), *facts.get("tail", ())):
        print(f"    {line}")
