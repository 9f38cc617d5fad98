"""What a session finds beside timings: who could not run or failed, and memory. It goes into the same JSON file."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NoReturn

import pytest

NO_TIME = "no time was left"


class Noted(pytest.fail.Exception):
    """A failure that is on record already."""


@dataclass
class Record:
    """Rows for the JSON file.

    Attributes:
        not_run: contender, suite, shape, phase and the reason, for all that could not run or had no time left; of the latter
            the test, ``case``, too, since not all have contenders.
        failed: the same for whatever raised, or computed something else than the reference.
        memory: measured and predicted bytes.
        budgets: what fits into a given memory.
        keeps_memory: memory that was freed stayed with the process.
        large_pages: large tensors lay on large pages.
        visits: seconds of the dense layer and of the contender in each round of each visit, by benchmark. Not for the file.
    """

    not_run: list[dict[str, str]] = field(default_factory=list)
    failed: list[dict[str, str]] = field(default_factory=list)
    memory: list[dict[str, Any]] = field(default_factory=list)
    budgets: list[dict[str, Any]] = field(default_factory=list)
    keeps_memory: bool = False
    large_pages: bool = False
    visits: dict[str, list[list[tuple[float, float]]]] = field(default_factory=dict)

    def skip(self, who: dict[str, str], reason: str) -> None:
        """Note why something does not run, and leave the test."""
        self.not_run.append({**who, "reason": reason})
        pytest.skip(reason)

    def note(self, who: dict[str, str], error: BaseException) -> str:
        """Note what went wrong; returns it in one line."""
        reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
        self.failed.append({**who, "reason": reason})
        return reason

    def fail(self, who: dict[str, str], error: Exception) -> NoReturn:
        """Note what went wrong, and fail the test."""
        raise Noted(self.note(who, error), pytrace=False)

    def rows(self) -> dict[str, Any]:
        """What the file holds."""
        return {name: rows for name, rows in vars(self).items() if name != "visits"}


RECORD = pytest.StashKey[Record]()
