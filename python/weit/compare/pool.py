"""Single-thread worker processes for jobs; each job leaves one JSON file, and one whose file is there is not run again."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
import traceback
from collections.abc import Sequence
from functools import partial
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from tqdm import tqdm

from weit.compare.lines import Book, Job, Line, Returned, keep


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
        """The results of ``jobs``, in their order; raises as ``follow``."""

        def line() -> Line[list[Any]]:
            return (yield list(jobs))

        return self.follow([line()], title)[0]

    def follow(self, lines: Sequence[Line[Returned]], title: str, work: float = 0.0) -> list[Returned]:
        """What each of ``lines`` returns; their jobs are computed, unless their results are on disk.

        Args:
            work: what all jobs may cost together, for the progress bar, which at first does not know all of them.

        Raises:
            RuntimeError: a job failed or its worker died; results that were finished by then are on disk. And what a line
                raises.
        """
        book = Book(self._out, lines)
        with tqdm(
            desc=title,
            bar_format="{desc}: {percentage:3.0f}%|{bar}| {elapsed}<{remaining}{postfix}",
            mininterval=0.2 if sys.stderr.isatty() else 10,
        ) as bar:
            while book.advance():
                while book.waiting and self._hire():
                    self._give(book.waiting.pop()[1])
                for job, share, result in self._collect():
                    if share is None:
                        book.finish(job, result)
                    else:
                        book.note(job, share)
                bar.n, known = book.work
                bar.total = max(work, known)
                running = ", ".join(sorted({job.name.partition("/")[0] for job in self._busy.values()}))
                bar.set_postfix_str(f"{len(book.results)} done, {running}".rstrip(", "), refresh=False)
                bar.update(0)
            bar.n = bar.total = book.work[0]  # jobs may have fallen away
            bar.leave = bar.total > 0  # no bar for nothing
        return book.returned

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
        try:
            connection.send(job)
        except OSError:  # it died while it had nothing to do
            raise self._death(connection, job) from None

    def _collect(self) -> list[tuple[Job, float | None, Any]]:
        """What workers say within a second: a job, and the share done, or ``None`` and its result."""
        news: list[tuple[Job, float | None, Any]] = []
        for connection in wait(list(self._busy), timeout=1.0):
            assert isinstance(connection, Connection)
            job = self._busy[connection]
            try:
                kind, answer = connection.recv()
            except (EOFError, ConnectionResetError):
                raise self._death(connection, job) from None
            if kind == "failed":
                message, details = answer
                raise RuntimeError(f"{job.name} failed: {message}") from RuntimeError(f"in the worker:\n{details}")
            if kind == "done":
                del self._busy[connection]
                self._idle.append(connection)
            news.append((job, None, answer) if kind == "done" else (job, answer, None))
        return news

    def _death(self, connection: Connection, job: Job) -> RuntimeError:
        process = self._processes[connection]
        process.join()
        hint = " (killed; out of memory?)" if process.exitcode == -signal.SIGKILL else ""
        return RuntimeError(f"the worker of {job.name} died with exit code {process.exitcode}{hint}")


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
            answer = "done", keep(out, job, result)
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
