"""Tile sizes found by timing: ``WEIT_TUNE=full`` times the neighbours of a guess; else what the cache knows is used."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import astuple, fields, replace
from functools import partial
from typing import TypeVar

from torch import Tensor

from weit_kernels import timings, tune
from weit_kernels.triton.tiles import GradTiles, Tiles

AnyTiles = TypeVar("AnyTiles", Tiles, GradTiles)

_CHOSEN: dict[object, object] = {}  # what this process decided; a dictionary look-up is all that a call pays
_MOST_CHOSEN = 4096


def tuned(
    kernel: str, guess: AnyTiles, x: Tensor, sizes: tuple[int, ...], run: Callable[[AnyTiles], tune.Results]
) -> AnyTiles:
    """The tiles to launch ``kernel`` with: timed now, or timed before on such a device, or the guess.

    Args:
        guess: where the search starts; also the truth that a neighbour's results must agree with.
        x: operand whose rows, dtype and device are part of the key.
        sizes: the kernel's other sizes.
        run: launches with the tiles it is given and returns the results.
    """
    if not x.is_cuda:
        return guess
    rows = tune.bucket(x.shape[0])
    at = (kernel, x.device, rows, x.dtype, tune.allows_tf32(), sizes)
    if at in _CHOSEN:
        return _CHOSEN[at]  # type: ignore[return-value]
    timing = tune.mode() == "full"
    if timing and not tune.may_time(x.device):  # while a graph is captured: decide later
        return guess
    key = tune.key("tiles", x.device, kernel, f"rows<={rows}", x.dtype, *at[4:5], sizes)
    if timing and timings.cache().get(key) is None:
        candidates = {spelled(tiles): partial(run, tiles) for tiles in neighbours(guess)}
        candidates[spelled(guess)] = partial(run, guess)
        tune.contest(key, candidates, lambda: run(guess), tune.cuda_timer)
    entry = timings.cache().get(key)
    if len(_CHOSEN) >= _MOST_CHOSEN:
        _CHOSEN.clear()
    _CHOSEN[at] = chosen = guess if entry is None else parsed(entry.winner, guess)
    return chosen


def neighbours(tiles: AnyTiles) -> Iterator[AnyTiles]:
    """Tiles with one size doubled or halved, or with other launch options; none with a product below 16 to a side."""
    for name in ("tokens", "j", "k", "a", "i"):
        for size in (getattr(tiles, name) * 2, getattr(tiles, name) // 2):
            changed = replace(tiles, **{name: size})
            if size >= 1 and _whole(changed):
                yield changed
    for warps in {4, 8} - {tiles.warps}:
        yield replace(tiles, warps=warps)
    for stages in {2, 3, 4} - {tiles.stages}:
        yield replace(tiles, stages=stages)


def _whole(t: Tiles | GradTiles) -> bool:
    sides = (t.tokens * t.j, t.tokens * t.a, t.t * t.a, t.j * t.t, t.k, t.i)
    return min(sides) >= 16 and t.tokens * t.j * t.t * t.a <= 1 << 15


def spelled(tiles: Tiles | GradTiles) -> str:
    """Tiles as a name in the cache: every field and its value."""
    return " ".join(f"{field.name}={value}" for field, value in zip(fields(tiles), astuple(tiles), strict=True))


def parsed(text: str, guess: AnyTiles) -> AnyTiles:
    """The inverse of ``spelled``; the guess where the text is not of its kind."""
    found = {name: int(value) for name, value in re.findall(r"(\w+)=(\d+)", text)}
    if set(found) != {field.name for field in fields(guess)}:
        return guess
    tiles = replace(guess, **found)
    powers = all(value >= 1 and value & (value - 1) == 0 for name, value in found.items() if name != "stages")
    return tiles if powers and _whole(tiles) else guess
