"""Fit the planner's machine rates to timings saved by ``benchmarks.plan_accuracy --save``.

    python -m benchmarks.fit_rates timings.json [--dtype float32] [--columns 32]

Prints ``Rates(...)`` of each backend for ``weit_kernels/rates.py``. The objective is what the planner is for: the
expected time lost by choosing on predictions (softened, so that it has a slope), with a small weight on the predictions
themselves. Backends take turns, each fitted against the present predictions of the other.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.optimize import minimize

from benchmarks.plan_accuracy import kernel
from weit_kernels.estimates import Request, work
from weit_kernels.paths.blocks import Cost
from weit_kernels.rates import CPU, Rates
from weit_kernels.shapes import KronShape

Thetas = dict[str, np.ndarray]
NAMES = [field.name for field in fields(Rates) if field.name not in ("name", "columns")]


def main() -> None:
    """Read, fit from the present rates, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("timings", type=Path)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--columns", type=int, default=0, help="of a panel of the compiled kernels; 0: not counted")
    args = parser.parse_args()
    dtype = getattr(torch, args.dtype)

    rows = json.loads(args.timings.read_text())
    names = list(rows[0]["seconds"])
    backends = [name.rpartition(" ")[2] for name in names]
    pairs = list(zip(names, backends, strict=True))
    costs = [
        [_costs(row, name.partition(" ")[0], args.columns * (backend == "cpp"), dtype) for name, backend in pairs]
        for row in rows
    ]
    actual = np.log([[row["seconds"][name] for name in names] for row in rows])

    def predict(thetas: Thetas) -> np.ndarray:
        rates = {b: Rates("fit", **dict(zip(NAMES, np.exp(theta), strict=True))) for b, theta in thetas.items()}
        return np.log(
            [
                [sum(rates[b].seconds(c, dtype.itemsize) for c in path) for b, path in zip(backends, row, strict=True)]
                for row in costs
            ]
        )

    def loss(theta: np.ndarray, backend: str, thetas: Thetas) -> float:
        predicted = predict(thetas | {backend: theta})
        weights = np.exp(-(predicted - predicted.min(1, keepdims=True)) / 0.1)
        weights /= weights.sum(1, keepdims=True)
        regret = (weights * (actual - actual.min(1, keepdims=True))).sum(1).mean()
        ours = [b == backend for b in backends]
        return float(regret + 0.1 * np.abs(predicted - actual)[:, ours].mean())

    start = np.log([getattr(CPU["AVX512"]["torch"], name) or 1e-3 for name in NAMES])
    thetas: Thetas = dict.fromkeys(backends, start)
    for _ in range(4):
        for backend, theta in thetas.items():
            options = {"maxiter": 1000, "adaptive": True}
            thetas[backend] = minimize(loss, theta, (backend, thetas), method="Nelder-Mead", options=options).x
    predicted = predict(thetas)
    picked = predicted.argmin(1)
    lost = np.exp(actual[np.arange(len(picked)), picked] - actual.min(1))
    for backend, theta in thetas.items():
        values = ", ".join(f"{name}={value:.3g}" for name, value in zip(NAMES, np.exp(theta), strict=True))
        print(f"{backend}: Rates({values})")
    error = np.median(np.expm1(np.abs(predicted - actual)))
    print(f"fastest picked in {(lost == 1).mean():.0%}, within 1.1x in {(lost <= 1.1).mean():.0%}, ", end="")
    print(f"worst {lost.max():.2f}x, median error of a prediction {error:.0%}")
    for i in np.argsort(-lost)[:8]:
        print(f"{lost[i]:.2f}x {names[picked[i]]} {rows[i]}")


def _costs(row: dict[str, Any], path: str, columns: int, dtype: torch.dtype) -> list[Cost]:
    s, taps = row["shape"], kernel(row["shape"])
    shape = KronShape(s["N"], s["m"], s["n"], s["p"], s["q"], s["m"] * s["p"], s["n"] * s["q"], kernel=taps)
    request = Request(shape, s["M"], dtype, torch.device("cpu"), row["train"])
    phases = ("forward", "backward") if row["train"] else ("forward",)
    return [work(request, path, phase, columns) for phase in phases]


if __name__ == "__main__":
    main()
