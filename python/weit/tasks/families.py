"""The families of tasks by name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from weit.tasks import classification
from weit.tasks.task import Task


class Family(NamedTuple):
    """Attributes: data, if the user names none; (data, folder or file of it) → task."""

    data: str
    load: Callable[[str, Path | None], Task]


FAMILIES = {
    "classification": Family("digits", classification.load),
}


def load_task(data: str | None = None, root: str | Path | None = None, family: str = "classification") -> Task:
    """The task of ``family`` on ``data``; its splits are always the same.

    Args:
        data: what the family's ``load`` takes; its usual data if not given.
        root: where the data are, if not in the usual place.

    Raises:
        ValueError: unknown family or data, or a damaged or foreign file.
        OSError: files that are not there.
        RuntimeError: a library that the family needs is not installed.
    """
    if family not in FAMILIES:
        raise ValueError(f"family must be one of {', '.join(FAMILIES)}, got {family!r}")
    usual, load = FAMILIES[family]
    return load(usual if data is None else data, None if root is None else Path(root))
