"""Randomness as a pure function of a seed and a place in the run, so that there is no state to carry along."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

ORDER, ITEMS, STEP, SIZE, PARTS, SCORES = range(1, 7)
"""What a seed is drawn for, the second part of ``mix``, so that no two streams have anything in common."""

_MASK = (1 << 64) - 1


def mix(*parts: int) -> int:
    """A seed of 63 bits in which every bit of every part counts: SplitMix64's finaliser, folded over the parts.

    Source: Steele, Lea and Flood 2014, "Fast splittable pseudorandom number generators".
    """
    state = 0
    for part in parts:
        z = (state + (part & _MASK) + 0x9E3779B97F4A7C15) & _MASK
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & _MASK
        state = z ^ (z >> 31)
    return state >> 1


def uniform(*parts: int) -> float:
    """A number in [0, 1) drawn by ``mix``."""
    return (mix(*parts) >> 10) / (1 << 53)


def reseed(seed: int) -> None:
    """Seed torch, Python's ``random`` and numpy, whichever a model or a data set draws from: some 20 µs."""
    torch.default_generator.manual_seed(seed)
    if torch.cuda.is_initialized():
        torch.cuda.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed & 0xFFFFFFFF)


@contextmanager
def own_randomness(seed: int) -> Iterator[None]:
    """Run a block on randomness of its own; the caller's comes back afterwards, as if nothing had been drawn."""
    devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
    states = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(devices=devices):
            reseed(seed)
            yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
