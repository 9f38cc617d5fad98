"""Quiet moments of a machine that lends its cores, caches and memory to others as well, for seconds at a time.

Two things tell them: what a large matrix product comes to, which others slow down by using caches and memory, and how long
threads take to begin and end something together, which depends on where on the host a virtual machine's cores are just now.
"""

from __future__ import annotations

import statistics
import time
from bisect import insort
from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

# Of the pace that a twentieth of all looks so far reached, since some are lucky; slower rounds count where there are too few
# others.
QUIET = 0.92
PATIENCE = 1.5  # seconds that one contender on one shape waits for quiet
SHARE = 0.15  # of the time since the first look that looking and waiting may take before waits end
SLICE = 0.3  # seconds between two looks, or four times what one takes
_FIRST = 2.0  # seconds of the first wait, which has nothing to compare with
# Of what the fastest twentieth of all handshakes so far took. Two virtual cores took 4.7 or 7.3 µs for one, by turns of half
# a second, and layers of many short products twice as long in the latter.
NEAR = 1.1
_HANDSHAKES = 40  # whose median is one look, a fifth of a millisecond
_GRAIN = 32768  # elements that torch gives a thread at the least
# A layer of DeiT-B: operands and result are 26 MB, more than cores have for themselves. Products that fit there do not
# feel what others do to the cache that all share and to memory, from which dense layers are fed.
_ROWS, _OUT, _IN = 1576, 2304, 768
_seen: list[float] = []  # in order of size, both
_shaken: list[float] = []
_share = SHARE
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
    insort(_seen, found)
    return found


def handshake() -> float:
    """Seconds in which all threads begin and end a small piece of work."""
    numbers, times = _numbers(torch.get_num_threads()), []
    for _ in range(_HANDSHAKES):
        start = time.perf_counter()
        numbers.mul_(1.0)
        times.append(time.perf_counter() - start)
    found = statistics.median(times)
    insort(_shaken, found)
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
    patience = _left(patience)
    while not _is_quiet(found := gflops()) and time.monotonic() < start + patience:
        time.sleep(min(0.1, patience))
    _waited += time.monotonic() - start
    return found


def wait_freely() -> None:
    """From now on waits may take all the time there is."""
    global _share
    _share = 1.0


class Slices:
    """The rounds of one measurement, in slices between two looks at the pace of the machine, each between two handshakes.

    Args:
        patience: seconds in all that slices and rounds may wait for a quiet moment to begin in.
    """

    def __init__(self, patience: float) -> None:
        self._patience, self._ends = patience, 0.0
        self._paces: list[float] = []  # of each slice, the slower one of its two looks
        self._of_rounds: list[int] = []
        self._handshakes: list[float] = []  # of each round, the slower one of those before and after it

    def begin_round(self) -> None:
        """Note that a round begins; where a slice is over, look, and wait for the next one, or for cores to be near."""
        shaken = self._end_round()
        if time.monotonic() >= self._ends:
            start = time.monotonic()
            found = self._close()
            look = time.monotonic() - start
            if not _is_quiet(found) and (self._patience or not found):
                found = wait(self._patience)
            self._paces.append(found)
            now = time.monotonic()
            self._patience, self._ends = max(0.0, self._patience - (now - start)), now + max(SLICE, 4 * look)
            shaken = handshake()  # looks and waits take longer than cores stay where they are
        self._of_rounds.append(len(self._paces) - 1)
        self._handshakes.append(self._near(shaken))

    def quiet(self, least: int) -> tuple[list[int], float, float]:
        """The rounds of quiet slices with near cores before and after, or, to be ``least``, the quietest there are.

        Returns:
            The rounds, the slowest pace among them, and the slowest handshake.
        """
        self._end_round()
        self._close()
        rounds = [
            {"gflops": self._paces[which], "handshake": shaken}
            for which, shaken in zip(self._of_rounds, self._handshakes, strict=True)
        ]
        limits = bounds()
        found = [quietness(each, limits) for each in rounds]
        ranked = sorted(range(len(found)), key=lambda i: -found[i])
        kept = sorted(ranked[: max(least, sum(each >= 1 for each in found))])
        return kept, min(rounds[i]["gflops"] for i in kept), max(rounds[i]["handshake"] for i in kept)

    def _end_round(self) -> float:
        """A handshake at the end of the round under way, if there is one."""
        found = handshake()
        if self._handshakes:
            self._handshakes[-1] = max(self._handshakes[-1], found)
        return found

    def _near(self, found: float) -> float:
        """A handshake between near cores, if ``found`` is or patience brings one."""
        global _waited
        start, patience = time.monotonic(), _left(self._patience)
        while not _is_near(found) and time.monotonic() < start + patience:
            time.sleep(min(0.002, patience))
            found = handshake()
        took = time.monotonic() - start
        self._patience, _waited = max(0.0, self._patience - took), _waited + took
        return found

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


def bounds() -> dict[str, float]:
    """The least ``gflops`` and the longest ``handshake`` of quiet moments, by all looks of this process so far."""
    return {"gflops": _least_pace(), "handshake": _longest_handshake()} if _seen and _shaken else {}


def quietness(row: Mapping[str, Any], bounds: Mapping[str, float]) -> float:
    """At least 1 for figures of quiet moments: the worse of pace and handshake, over what they are bound by."""
    return min(row["gflops"] / bounds["gflops"], bounds["handshake"] / row["handshake"])


def marked(rows: Iterable[Mapping[str, Any]], bounds: Mapping[str, float]) -> list[dict[str, Any]]:
    """The same figures, ``loud`` if they are not of quiet moments; without ``bounds`` nobody knows."""
    return [{**row, "loud": quietness(row, bounds) < 1} if bounds and "handshake" in row else dict(row) for row in rows]


def _left(patience: float) -> float:
    """So much of ``patience`` as the share of waits leaves."""
    if _begun is None:
        return patience
    return min(patience, max(0.0, _share * (time.monotonic() - _begun) - _waited))


def _is_quiet(pace: float) -> bool:
    return bool(_seen) and pace >= _least_pace()


def _is_near(handshake: float) -> bool:
    return handshake <= _longest_handshake()


def _least_pace() -> float:
    return QUIET * _seen[-1 - len(_seen) // 20]


def _longest_handshake() -> float:
    return NEAR * _shaken[len(_shaken) // 20]


@lru_cache(maxsize=1)
def _numbers(threads: int) -> Tensor:
    return torch.ones(threads * _GRAIN)


@lru_cache(maxsize=1)
def _operands() -> tuple[Tensor, Tensor]:
    return torch.ones(_ROWS, _IN), torch.ones(_OUT, _IN)
