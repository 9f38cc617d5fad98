"""How much of its cores a machine gives: virtual ones may be halves of one core, or be lent to others meanwhile."""

from __future__ import annotations

import statistics
import time
from functools import lru_cache

import torch
from torch import Tensor

WHOLE = 0.9  # of the threads: from here on the cores count as whole
PATIENCE = 6.0  # seconds that one contender on one shape waits for them
_SIZE, _ROUNDS = 384, 9


@lru_cache(maxsize=1)
def _operands() -> tuple[Tensor, Tensor]:
    return torch.ones(_SIZE, _SIZE), torch.ones(_SIZE, _SIZE)


def share() -> float:
    """How many times as fast as one thread all threads multiply matrices just now, over their number."""
    threads = torch.get_num_threads()
    if threads == 1:
        return 1.0
    try:
        torch.set_num_threads(1)
        alone = _seconds()
    finally:
        torch.set_num_threads(threads)
    return alone / _seconds() / threads


def wait(patience: float = PATIENCE) -> float:
    """Wait until the cores are whole, no longer than ``patience`` seconds; returns their share at the end."""
    end = time.monotonic() + patience
    while (found := share()) < WHOLE and time.monotonic() < end:
        time.sleep(min(0.5, patience))
    return found


def _seconds() -> float:
    a, b = _operands()
    timed = []
    for _ in range(_ROUNDS + 1):
        start = time.perf_counter()
        torch.mm(a, b)
        timed.append(time.perf_counter() - start)
    return statistics.median(timed[1:])
