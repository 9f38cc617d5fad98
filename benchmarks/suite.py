"""The shapes of ``suite.json`` and how many operations each needs at the least."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from weit_kernels.paths import PATHS
from weit_kernels.shapes import KronShape


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

    def limit(self, phase: str) -> float:
        """Dense operations over the fewest that any path needs: the speed-up if operations alone counted.

        Recomputing an intermediate in the backward pass, which saves its memory, is counted as the work it is.
        """
        s = self.shape
        dense = 2 * self.rows * s.out_features * s.in_features * s.taps * (3 if phase == "train" else 1)
        phases = ("forward", "backward") if phase == "train" else ("forward",)
        least = min(sum(path.cost(s, self.rows, p, 4, "cpu").flops for p in phases) for path in PATHS.values())
        return dense / least


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
