"""The flags that name data and model, the same in every command that trains one."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from weit.models.sizes import parse_size
from weit.recipes import Size
from weit.tasks import Task, load_task


@dataclass(frozen=True)
class DataFlags:
    """Which images.

    Args:
        data: digits or fashion-mnist.
        root: folder of the data set, if it is not in the usual place.
    """

    data: str = "digits"
    root: Path | None = None

    def task(self) -> Task:
        return load_task(self.data, self.root)


@dataclass(frozen=True)
class SizeFlags:
    """How large a model.

    Args:
        size: WIDTHxDEPTH, as 64x6, or name=64,other=6 for a model with other names for its sizes.
        width: in place of size.
        depth: in place of size.

    Raises:
        ValueError: both are given, or the size reads like nothing.
    """

    size: str | None = None
    width: int | None = None
    depth: int | None = None

    def __post_init__(self) -> None:
        if self.size is not None and (self.width, self.depth) != (None, None):
            raise ValueError(f"size must not be given together with width or depth, got {self.size}")
        self.or_else({})

    def or_else(self, default: Size) -> Size:
        """The sizes asked for; those not named are as in ``default``."""
        if self.size is not None:
            return {**default, **parse_size(self.size)}
        asked = {"width": self.width, "depth": self.depth}
        return {**default, **{name: value for name, value in asked.items() if value is not None}}
