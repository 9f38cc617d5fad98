"""Fit the planner's machine rates to timings saved by ``benchmarks.plan_accuracy --save``.

    python -m benchmarks.fit_rates timings.json [--dtype float32]

Prints a ``Rates(...)`` for ``weit_kernels/rates.py``. The objective is what the planner is for: the expected time lost
by choosing on predictions (softened, so that it has a slope), with a small weight on the predictions themselves.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import fields
from pathlib import Path

import numpy as np
import torch
from scipy.optimize import minimize

from weit_kernels.paths import PATHS
from weit_kernels.rates import CPU, Rates
from weit_kernels.shapes import KronShape

NAMES = [field.name for field in fields(Rates) if field.name != "name"]


def main() -> None:
    """Read, fit from the present rates, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("timings", type=Path)
    parser.add_argument("--dtype", default="float32")
    args = parser.parse_args()
    itemsize = getattr(torch, args.dtype).itemsize

    costs, times = [], []
    rows = json.loads(args.timings.read_text())
    for row in rows:
        s = row["shape"]
        shape = KronShape(s["N"], s["m"], s["n"], s["p"], s["q"], s["m"] * s["p"], s["n"] * s["q"])
        phases = ("forward", "backward") if row["train"] else ("forward",)
        costs.append(
            [[module.cost(shape, s["M"], phase, itemsize, "cpu") for phase in phases] for module in PATHS.values()]
        )
        times.append([row["seconds"][path] for path in PATHS])
    actual = np.log(np.array(times))

    def predict(theta: np.ndarray) -> np.ndarray:
        rates = Rates("fit", **dict(zip(NAMES, np.exp(theta), strict=True)))
        return np.log([[sum(rates.seconds(cost, itemsize) for cost in path) for path in row] for row in costs])

    def loss(theta: np.ndarray) -> float:
        predicted = predict(theta)
        weights = np.exp(-(predicted - predicted.min(1, keepdims=True)) / 0.1)
        weights /= weights.sum(1, keepdims=True)
        regret = (weights * (actual - actual.min(1, keepdims=True))).sum(1).mean()
        return float(regret + 0.1 * np.abs(predicted - actual).mean())

    theta = np.log([max(1e-3, getattr(CPU, name)) for name in NAMES])
    for _ in range(4):
        theta = minimize(loss, theta, method="Nelder-Mead", options={"maxiter": 1500, "adaptive": True}).x
    predicted = predict(theta)
    picked = predicted.argmin(1)
    lost = np.exp(actual[np.arange(len(picked)), picked] - actual.min(1))
    print("Rates(" + ", ".join(f"{name}={value:.3g}" for name, value in zip(NAMES, np.exp(theta), strict=True)) + ")")
    error = np.median(np.expm1(np.abs(predicted - actual)))
    print(f"fastest picked in {(lost == 1).mean():.0%}, within 1.1x in {(lost <= 1.1).mean():.0%}, ", end="")
    print(f"worst {lost.max():.2f}x, median error of a prediction {error:.0%}")
    for i in np.argsort(-lost)[:8]:
        print(f"{lost[i]:.2f}x {list(PATHS)[picked[i]]} {rows[i]}")


if __name__ == "__main__":
    main()
