"""Quiet moments of a machine that lends its cores, caches and memory to others as well, for seconds at a time."""

from __future__ import annotations

import heapq
import time
from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor

# Of the third best pace so far, since one look may be lucky; slower rounds count only where there are too few others.
QUIET = 0.92
PATIENCE = 3.0  # seconds that one contender on one shape waits for quiet
SHARE = 0.25  # of the time since the first look that looking and waiting may take before waits end
SLICE = 0.3  # seconds between two looks, or four times what one takes
_FIRST = 2.0  # seconds of the first wait, which has nothing to compare with
# A layer of DeiT-B: operands and result are 26 MB, more than cores have for themselves. Products that fit there do not
# feel what others do to the cache that all share and to memory, from which dense layers are fed.
_ROWS, _OUT, _IN = 1576, 2304, 768
_seen: list[float] = []
_waited = 0.0
_begun: float | None = None


def gflops() -> float:
    """10⁹ operations a second that a matrix product in float32 on the CPU comes to, with all threads."""
    x, W = _operands()
    found = 0.0
    for _ in range(2):  # a hiccup is not the pace
        start = time.perf_counter()
        torch.mm(x, W.t())
        found = max(found, 2e-9 * _ROWS * _OUT * _IN / (time.perf_counter() - start))
        if _is_quiet(found):
            break
    _seen.append(found)
    return found


def wait(patience: float = PATIENCE) -> float:
    """Wait until the machine is nearly as fast as it was at its best in this process, or ``patience`` seconds.

    Less where earlier waits took much of the time: on a machine that is never again as fast, the suites would not end.

    Returns:
        ``gflops()`` at the end.
    """
    global _begun, _waited
    start = time.monotonic()
    if _begun is None:
        _begun = start
        while time.monotonic() < start + min(_FIRST, patience):
            gflops()
    patience = min(patience, max(0.0, SHARE * (start - _begun) - _waited))
    while not _is_quiet(found := gflops()) and time.monotonic() < start + patience:
        time.sleep(min(0.1, patience))
    _waited += time.monotonic() - start
    return found


class Slices:
    """The rounds of one measurement, in slices between two looks at the pace of the machine.

    Args:
        patience: seconds in all that slices may wait for a quiet moment to begin in.
    """

    def __init__(self, patience: float) -> None:
        self._patience, self._ends = patience, 0.0
        self._paces: list[float] = []  # of each slice, the slower one of its two looks
        self._of_rounds: list[int] = []

    def begin_round(self) -> None:
        """Note that a round begins; where a slice is over, look, and wait for the next one."""
        if time.monotonic() >= self._ends:
            start = time.monotonic()
            found = self._close()
            look = time.monotonic() - start
            if not _is_quiet(found) and (self._patience or not found):
                found = wait(self._patience)
            self._paces.append(found)
            now = time.monotonic()
            self._patience, self._ends = max(0.0, self._patience - (now - start)), now + max(SLICE, 4 * look)
        self._of_rounds.append(len(self._paces) - 1)

    def quiet(self, least: int) -> tuple[list[int], float]:
        """The rounds of quiet slices, or, to be ``least``, of the quietest there are; and the slowest pace among them."""
        self._close()
        kept: set[int] = set()
        for pace in sorted(set(self._paces), reverse=True):
            if not _is_quiet(pace) and len(kept) >= least:
                break
            kept |= {i for i, which in enumerate(self._of_rounds) if self._paces[which] == pace}
            slowest = pace
        return sorted(kept), slowest

    def _close(self) -> float:
        """Look at the pace at the end of the slice under way; 0 if there is none."""
        if not self._paces:
            return 0.0
        global _waited
        start = time.monotonic()
        found = gflops()
        _waited += time.monotonic() - start
        self._paces[-1] = min(self._paces[-1], found)
        return found


def is_quiet(found: float, seen: Sequence[float]) -> bool:
    """Whether a pace is nearly the third best of those ``seen``."""
    return bool(seen) and found >= QUIET * heapq.nlargest(3, seen)[-1]


def _is_quiet(found: float) -> bool:
    return is_quiet(found, _seen)


@lru_cache(maxsize=1)
def _operands() -> tuple[Tensor, Tensor]:
    return torch.ones(_ROWS, _IN), torch.ones(_OUT, _IN)
