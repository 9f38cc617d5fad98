"""How fast the machine is just now: virtual cores may be halves of one core, or be lent to others meanwhile."""

from __future__ import annotations

import statistics
import time
from functools import lru_cache

import torch
from torch import Tensor

SLOW = 0.85  # of the fastest seen; below it a measurement waits
PATIENCE = 6.0  # seconds that one contender on one shape waits in all
_LOOK = 2.0  # seconds of the first wait, which has nothing to compare with
_SIZE, _ROUNDS = 384, 3
_fastest = 0.0


class Gate:
    """Holds rounds back while the machine is slower than it was, for ``patience`` seconds in all.

    Attributes:
        readings: ``gflops()`` before each round that was let through.
    """

    def __init__(self, patience: float = PATIENCE) -> None:
        self.patience = patience
        self.readings: list[float] = []

    def __call__(self) -> None:
        """Return when a round may begin."""
        start = time.monotonic()
        if not _fastest:
            while time.monotonic() < start + min(_LOOK, self.patience):
                gflops()
        while (found := gflops()) < SLOW * _fastest and time.monotonic() < start + self.patience:
            time.sleep(min(0.1, self.patience))
        self.readings.append(found)
        self.patience -= min(self.patience, time.monotonic() - start)


def gflops() -> float:
    """10⁹ operations a second that a matrix product in float32 on the CPU comes to, with all threads."""
    global _fastest
    a, b = _operands()
    timed = []
    for _ in range(_ROUNDS):
        start = time.perf_counter()
        torch.mm(a, b)
        timed.append(time.perf_counter() - start)
    found = 2e-9 * _SIZE**3 / statistics.median(timed)
    _fastest = max(_fastest, found)
    return found


@lru_cache(maxsize=1)
def _operands() -> tuple[Tensor, Tensor]:
    return torch.ones(_SIZE, _SIZE), torch.ones(_SIZE, _SIZE)
