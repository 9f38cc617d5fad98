"""How fast the machine is just now: virtual cores may be halves of one core, or be lent to others meanwhile."""

from __future__ import annotations

import statistics
import time
from functools import lru_cache

import torch
from torch import Tensor

SLOW = 0.85  # of the fastest seen; below it a measurement waits
PATIENCE = 6.0  # seconds that one contender on one shape waits
SHARE = 0.15  # of the time since the first wait that all waits together may take
_LOOK = 2.0  # seconds of the first wait, which has nothing to compare with
_SIZE, _ROUNDS = 384, 15
_fastest = 0.0
_waited = 0.0
_begun: float | None = None


def gflops() -> float:
    """10⁹ operations a second that a matrix product in float32 on the CPU comes to, with all threads."""
    global _fastest
    a, b = _operands()
    timed = []
    for _ in range(_ROUNDS + 1):
        start = time.perf_counter()
        torch.mm(a, b)
        timed.append(time.perf_counter() - start)
    found = 2e-9 * _SIZE**3 / statistics.median(timed[1:])
    _fastest = max(_fastest, found)
    return found


def wait(patience: float = PATIENCE) -> float:
    """Wait until the machine is nearly as fast as it was at its fastest in this process, or ``patience`` seconds.

    Less where earlier waits took much of the time: on a machine that is never again as fast, the suites would not end.

    Returns:
        ``gflops()`` at the end.
    """
    global _begun, _waited
    start = time.monotonic()
    if _begun is None:
        _begun = start
        while time.monotonic() < start + min(_LOOK, patience):
            gflops()
    else:
        patience = min(patience, SHARE * (start - _begun) - _waited)
    while (found := gflops()) < SLOW * _fastest and time.monotonic() < start + patience:
        time.sleep(min(0.25, patience))
    _waited += time.monotonic() - start
    return found


@lru_cache(maxsize=1)
def _operands() -> tuple[Tensor, Tensor]:
    return torch.ones(_SIZE, _SIZE), torch.ones(_SIZE, _SIZE)
