"""The families of tasks by name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from weit.tasks import classification, control, generation
from weit.tasks.task import Task


class Family(NamedTuple):
    """Attributes: data, if the user names none; (data, folder or file of it, **options) → task; names of options."""

    data: str
    load: Callable[..., Task]
    options: tuple[str, ...] = ()


FAMILIES = {
    "classification": Family("digits", classification.load, ("image_size", "augment", "workers")),
    "generation": Family("fashion-mnist", generation.load),
    "control": Family("Hopper-v5", control.load),
}


def load_task(
    data: str | None = None, root: str | Path | None = None, family: str = "classification", **options: Any
) -> Task:
    """The task of ``family`` on ``data``; its splits are always the same.

    Args:
        data: what the family's ``load`` takes; its usual data if not given.
        root: where the data are, if not in the usual place.
        options: what else the family's ``load`` takes; ``None`` is as if not given.

    Raises:
        ValueError: unknown family, data or option, or a damaged or foreign file.
        OSError: files that are not there.
        RuntimeError: a library that the family needs is not installed.
    """
    if family not in FAMILIES:
        raise ValueError(f"family must be one of {', '.join(FAMILIES)}, got {family!r}")
    usual, load, known = FAMILIES[family]
    given = {name: value for name, value in options.items() if value is not None}
    if unknown := [name for name in given if name not in known]:
        raise ValueError(f"{' and '.join(unknown)} must be left out for {family}")
    return load(usual if data is None else data, None if root is None else Path(root), **given)
