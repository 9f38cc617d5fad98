"""Jobs, what has become of them, and lines of jobs: what depends on what.

A line asks for jobs, goes on with their results and asks for more, so that no job waits for another that it does not need.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeAlias, TypeVar

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


Returned = TypeVar("Returned")
Line: TypeAlias = Generator[list[Job], Any, Returned]
"""Yields jobs and is sent the list of their results; another line may have asked for the same jobs before."""


class Book(Generic[Returned]):
    """What lines have asked for so far, and what has come of it.

    Attributes:
        waiting: jobs to compute, the next one last, each with the number of the line that asked first: those of earlier
            lines go first, and in a line long ones.
        results: of jobs that are done, by name.
    """

    def __init__(self, out: Path, lines: Sequence[Line[Returned]]) -> None:
        self._out, self._lines = out, lines
        self._asked: dict[int, list[Job] | None] = dict.fromkeys(range(len(lines)))  # None: not begun
        self._returned: dict[int, Returned] = {}
        self._jobs: dict[str, Job] = {}
        self._shares: dict[str, float] = {}
        self.waiting: list[tuple[int, Job]] = []
        self.results: dict[str, Any] = {}

    @property
    def returned(self) -> list[Returned]:
        """What each line returned, once all are at their end."""
        return [self._returned[index] for index in range(len(self._lines))]

    @property
    def work(self) -> tuple[float, float]:
        """Of all jobs so far: what is done, and all of it."""
        jobs = self._jobs.items()
        return sum(job.work * self._shares.get(name, 0.0) for name, job in jobs), sum(job.work for _, job in jobs)

    def advance(self) -> bool:
        """Let each line go on that has its results; whether any is not at its end."""
        for index in [*self._asked]:
            while index in self._asked and all(job.name in self.results for job in self._asked[index] or ()):
                self._go_on(index)
        self.waiting.sort(key=lambda each: (-each[0], each[1].work))
        return bool(self._asked)

    def note(self, job: Job, share: float) -> None:
        """``share`` of ``job`` is done."""
        self._shares[job.name] = share

    def finish(self, job: Job, result: Any) -> None:
        """``job`` came to ``result``."""
        self._shares[job.name], self.results[job.name] = 1.0, result

    def _go_on(self, index: int) -> None:
        before = self._asked[index]
        try:
            asked = self._lines[index].send(None if before is None else [self.results[job.name] for job in before])
        except StopIteration as end:
            self._returned[index] = end.value
            del self._asked[index]
            return
        self._asked[index] = asked
        for job in asked:
            if job.name not in self._jobs:
                self._jobs[job.name], found = job, read(self._out, job)
                if found is None:
                    self.waiting.append((index, job))
                else:
                    self.finish(job, found)


def keep(out: Path, job: Job, result: Any) -> Any:
    """Write a result, whole or not at all; it comes back as JSON has it, as a resumed run sees it."""
    text = json.dumps({"arguments": job.arguments, "result": result}, indent=1)
    atomic_write(_file(out, job), text)
    return json.loads(text)["result"]


def read(out: Path, job: Job) -> Any:
    """The result on disk, or None if there is none of this very job."""
    try:
        record = json.loads(_file(out, job).read_text())
        same = record["arguments"] == json.loads(json.dumps(job.arguments))
        return record["result"] if same else None
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None


def _file(out: Path, job: Job) -> Path:
    return out / f"{job.name}.json"
