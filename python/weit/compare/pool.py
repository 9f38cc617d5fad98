"""Jobs in single-thread worker processes; each leaves one JSON file, and a job whose file is there is not run again."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from tqdm import tqdm

from weit.files import atomic_write


@dataclass(frozen=True)
class Job:
    """One call of ``function(folder, paths, report, **arguments)`` in a worker.

    ``folder`` is ``out / name``, for what the job leaves beside its result; ``report(share)`` says how much is done.

    Attributes:
        name: relative path; the result is written to ``out / (name + ".json")``.
        function: at the top level of a module, so that a worker can import it; returns something JSON can hold.
        arguments: what the result depends on, as JSON: a result with other arguments is not reused.
        paths: where to find what the arguments name by content.
        work: expected cost, in any unit: long jobs go first, and the progress bar counts it.
    """

    name: str
    function: Callable[..., Any]
    arguments: dict[str, Any]
    paths: dict[str, Path] = field(default_factory=dict)
    work: float = 1.0


class Pool:
    """Worker processes that run jobs whose results go to ``out``; a context manager, which ends them.

    They start when there is something to do and stay for the next jobs, because importing torch takes seconds.
    """

    def __init__(self, out: Path, size: int) -> None:
        self._out, self._size = out, size
        self._processes: dict[Connection, BaseProcess] = {}
        self._idle: list[Connection] = []
        self._busy: dict[Connection, Job] = {}

    def __enter__(self) -> Pool:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for connection, process in self._processes.items():
            connection.close()  # an idle worker sees this and leaves
            if connection in self._busy:
                process.terminate()
        for process in self._processes.values():
            process.join(timeout=10)
            process.kill()

    def run(self, jobs: Sequence[Job], title: str) -> list[Any]:
        """The results of ``jobs``, in their order; those not on disk yet are computed, long ones first.

        Raises:
            RuntimeError: a job failed or its worker died; results that were finished by then are on disk.
        """
        if not jobs:  # no bar for nothing
            return []
        results = {job.name: _read(self._out, job) for job in jobs}
        done = {job.name: float(results[job.name] is not None) for job in jobs}
        waiting = sorted((job for job in jobs if results[job.name] is None), key=lambda job: job.work)
        bar = tqdm(
            total=sum(job.work for job in jobs),
            desc=title,
            bar_format="{desc}: {percentage:3.0f}%|{bar}| {elapsed}<{remaining}{postfix}",
            mininterval=0.2 if sys.stderr.isatty() else 10,
        )
        with bar:
            while waiting or self._busy:
                while waiting and self._hire():
                    self._give(waiting.pop())
                for job, share, result in self._collect():
                    done[job.name], results[job.name] = share, result
                bar.n = sum(done[job.name] * job.work for job in jobs)
                bar.set_postfix_str(f"{sum(r is not None for r in results.values())} of {len(jobs)}", refresh=False)
                bar.update(0)
        return [results[job.name] for job in jobs]

    def _hire(self) -> bool:
        """Whether a worker is idle, perhaps a new one."""
        if not self._idle and len(self._processes) < self._size:
            context = multiprocessing.get_context("spawn")  # forking a process that holds torch's threads can hang
            ours, theirs = context.Pipe()
            self._processes[ours] = context.Process(target=_serve, args=(theirs, self._out), daemon=True)
            self._processes[ours].start()
            theirs.close()
            self._idle.append(ours)
        return bool(self._idle)

    def _give(self, job: Job) -> None:
        connection = self._idle.pop()
        self._busy[connection] = job
        connection.send(job)

    def _collect(self) -> list[tuple[Job, float, Any]]:
        """What workers say within a second: job, share done, and the result of a finished one, else None."""
        news = []
        for connection in wait(list(self._busy), timeout=1.0):
            assert isinstance(connection, Connection)
            job = self._busy[connection]
            try:
                kind, answer = connection.recv()
            except (EOFError, ConnectionResetError):
                process = self._processes[connection]
                process.join()
                hint = " (killed; out of memory?)" if process.exitcode == -signal.SIGKILL else ""
                raise RuntimeError(f"the worker of {job.name} died with exit code {process.exitcode}{hint}") from None
            if kind == "failed":
                message, details = answer
                raise RuntimeError(f"{job.name} failed: {message}") from RuntimeError(f"in the worker:\n{details}")
            if kind == "done":
                del self._busy[connection]
                self._idle.append(connection)
            news.append((job, 1.0, answer) if kind == "done" else (job, answer, None))
        return news


def _serve(connection: Connection, out: Path) -> None:
    """A worker's life: jobs in, results out, until the other end closes or dies, in the middle of a job too."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to the whole group; the parent ends its workers
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())  # an orderly exit, after which libraries have tidied up
    torch.set_num_threads(1)
    threading.Thread(target=_die_with_parent, daemon=True).start()
    while True:
        try:
            job = connection.recv()
        except EOFError:
            return
        try:
            result = job.function(out / job.name, job.paths, partial(_progress, connection), **job.arguments)
            text = json.dumps(result)  # through JSON also when fresh, so that a resumed run sees the very same values
            atomic_write(
                _file(out, job), json.dumps({"arguments": job.arguments, "result": json.loads(text)}, indent=1)
            )
            answer = "done", json.loads(text)
        except Exception as error:
            answer = "failed", (f"{type(error).__name__}: {error}", traceback.format_exc())
        connection.send(answer)


def _die_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os.kill(os.getpid(), signal.SIGTERM)


def _progress(connection: Connection, share: float) -> None:
    connection.send(("progress", share))


def _file(out: Path, job: Job) -> Path:
    return out / f"{job.name}.json"


def _read(out: Path, job: Job) -> Any:
    """The result on disk, or None if there is none of this very job."""
    try:
        record = json.loads(_file(out, job).read_text())
        same = record["arguments"] == json.loads(json.dumps(job.arguments))
        return record["result"] if same else None
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None
