"""What the command line of the suites says, in one object."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass, field

import pytest
import torch

from benchmarks.suite import select

DTYPES = ("float32", "bfloat16", "float16")
# The suites in their order, and their shares of --minutes: each begins, even on a machine too slow for all of them.
SHARES = {
    "test_linear": 0.54,
    "test_conv": 0.10,
    "test_peers": 0.20,
    "test_memory": 0.06,
    "test_models": 0.06,
    "test_growth": 0.04,
}


@dataclass(frozen=True)
class Options:
    """Options of one session.

    Attributes:
        device, dtype: what is measured.
        shapes: names in ``suite.json``; empty for those of each suite.
        quick: small sizes and few rounds; the figures then mean nothing.
        minutes: for all suites; what would start later is left out.
        began: when the session did, by ``time.monotonic()``.
    """

    device: str = "cpu"
    dtype: torch.dtype = torch.float32
    shapes: tuple[str, ...] = ()
    quick: bool = False
    minutes: float = float("inf")
    began: float = field(default_factory=time.monotonic)

    @property
    def cpu(self) -> bool:
        return self.device == "cpu"

    @property
    def seconds(self) -> float:
        """Measuring time for one contender on one shape in one visit."""
        return 0.02 if self.quick else 0.25

    @property
    def ends(self) -> float:
        """When nothing more begins, by ``time.monotonic()``."""
        return self.began + 60 * self.minutes

    def deadlines(self, suites: Iterable[str]) -> dict[str, float]:
        """When each of the suites that are run stops beginning new cases; what one leaves, the next ones have, what all
        leave is for later visits."""
        run, ends, share = set(suites) & SHARES.keys(), dict[str, float](), 0.0
        total = sum(SHARES[name] for name in run)
        for name in filter(run.__contains__, SHARES):
            share += SHARES[name]
            ends[name] = self.began + 60 * self.minutes * share / total
        return ends


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
    minutes = float("inf") if given.minutes is None else given.minutes
    return Options(given.device, getattr(torch, given.dtype), names, given.quick, minutes)


OPTIONS = pytest.StashKey[Options]()
DEADLINES = pytest.StashKey[dict[str, float]]()
