"""The shapes of ``suite.json`` and how many operations each needs at the least."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from weit_kernels.paths import PATHS
from weit_kernels.shapes import KronShape

KINDS = ("linear", "conv2d")


@dataclass(frozen=True)
class SuiteShape:
    """One row of ``suite.json``: a linear layer on ``rows`` tokens, or a convolution on ``batch`` images."""

    name: str
    kind: str
    shape: KronShape
    rows: int
    batch: int = 0
    size: tuple[int, int] = (0, 0)

    @property
    def phases(self) -> tuple[str, ...]:
        """``forward``, and ``train`` for shapes that are trained."""
        return ("forward", "train") if self.kind == "train" else ("forward",)

    def dense_flops(self, phase: str) -> int:
        """Operations of the dense layer; in training of all three products."""
        s = self.shape
        return 2 * self.rows * s.out_features * s.in_features * s.taps * (3 if phase == "train" else 1)

    def limit(self, phase: str) -> float:
        """Dense operations over the fewest that any path needs: the speed-up if operations alone counted.

        Recomputing an intermediate in the backward pass, which saves its memory, is counted as the work it is.
        """
        s = self.shape
        phases = ("forward", "backward") if phase == "train" else ("forward",)
        least = min(sum(path.cost(s, self.rows, p, 4, "cpu").flops for p in phases) for path in PATHS.values())
        return self.dense_flops(phase) / least


def load(kind: str, cpu: bool) -> list[SuiteShape]:
    """All ``"linear"`` or ``"conv2d"`` shapes; on a CPU with rows (images) divided by 32, as the suite says."""
    shapes = []
    for row in json.loads((Path(__file__).parent / "suite.json").read_text())[kind]:
        kernel = (row["kernel"],) * 2 if kind == "conv2d" else ()
        sizes = (row["N"], row["m"], row["n"], row["p"], row["q"])
        shape = KronShape(*sizes, row["m"] * row["p"], row["n"] * row["q"], kernel=kernel)
        count = max(1, row["M" if kind == "linear" else "B"] // (32 if cpu else 1))
        if kind == "linear":
            shapes.append(SuiteShape(row["name"], row["kind"], shape, count))
        else:
            size = (row["H"], row["W"])
            shapes.append(SuiteShape(row["name"], row["kind"], shape, count * size[0] * size[1], count, size))
    return shapes


def select(kind: str, cpu: bool, names: Sequence[str] = (), quick: bool = False) -> list[SuiteShape]:
    """The shapes called ``names``, in that order, or all; ``quick`` makes each small and never changes N, m or n.

    Raises:
        ValueError: a name that is no shape's.
    """
    known = [shape.name for each in KINDS for shape in load(each, cpu)]
    if unknown := sorted(set(names) - set(known)):
        raise ValueError(f"shapes are {', '.join(known)}, got {', '.join(unknown)}")
    shapes = load(kind, cpu)
    if names:
        shapes = sorted((s for s in shapes if s.name in names), key=lambda s: list(names).index(s.name))
    return [_small(shape) for shape in shapes] if quick else shapes


def _small(suite: SuiteShape) -> SuiteShape:
    s = suite.shape
    p, q = max(8, s.p // 8), max(8, s.q // 8)
    small = replace(suite, shape=replace(s, p=p, q=q, out_features=s.m * p, in_features=s.n * q))
    if suite.batch:
        return replace(small, batch=2, size=(7, 7), rows=2 * 7 * 7)
    return replace(small, rows=min(suite.rows, 128))
