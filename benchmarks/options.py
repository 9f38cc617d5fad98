"""What the command line of the suites says, in one object."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

import pytest
import torch

from benchmarks.suite import select

DTYPES = ("float32", "bfloat16", "float16")


@dataclass(frozen=True)
class Options:
    """Options of one session.

    Attributes:
        device, dtype: what is measured.
        shapes: names in ``suite.json``; empty for those of each suite.
        quick: small sizes and few rounds; the figures then mean nothing.
        deadline: what starts later than this (``time.monotonic()``) is left out.
    """

    device: str = "cpu"
    dtype: torch.dtype = torch.float32
    shapes: tuple[str, ...] = ()
    quick: bool = False
    deadline: float = field(default=float("inf"))

    @property
    def cpu(self) -> bool:
        return self.device == "cpu"

    @property
    def seconds(self) -> float:
        """Measuring time for one contender on one shape."""
        return 0.02 if self.quick else 0.3

    @property
    def least_rounds(self) -> int:
        return 3 if self.quick else 5


def add_options(parser: pytest.Parser) -> None:
    group = parser.getgroup("weit benchmarks")
    group.addoption("--device", choices=("cpu", "cuda"), default="cpu")
    group.addoption("--dtype", choices=DTYPES, default="float32")
    group.addoption("--shapes", default="", help="names in benchmarks/suite.json, with commas between them")
    group.addoption("--quick", action="store_true", help="small sizes, few rounds: tries the suites")
    group.addoption("--minutes", type=float, default=None, help="what would start later is left out and listed")


def read_options(config: pytest.Config) -> Options:
    """The session's options.

    Raises:
        pytest.UsageError: ``--device cuda`` where torch sees none, a shape that is not in the suite, or ``--minutes``
            that is not positive.
    """
    given = config.option
    if given.device == "cuda" and not torch.cuda.is_available():
        raise pytest.UsageError(f"--device cuda, but torch {torch.__version__} sees no CUDA device")
    if given.minutes is not None and given.minutes <= 0:
        raise pytest.UsageError(f"--minutes must be more than 0, got {given.minutes}")
    names = tuple(name.strip() for name in given.shapes.split(",") if name.strip())
    try:
        select("linear", True, names)
    except ValueError as error:
        raise pytest.UsageError(f"--shapes: {error}") from error
    deadline = float("inf") if given.minutes is None else time.monotonic() + 60 * given.minutes
    return Options(given.device, getattr(torch, given.dtype), names, given.quick, deadline)


OPTIONS = pytest.StashKey[Options]()
