"""Which path and backend computes a shape: operation counts, a cost model, the choice, and ``explain()``."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch

from weit_kernels.backends import require_runnable, why_not
from weit_kernels.paths import PATHS
from weit_kernels.paths.blocks import Cost
from weit_kernels.rates import Rates, rates_for
from weit_kernels.shapes import DTYPES, LAYOUTS, KronShape
from weit_kernels.shapes import PATHS as PATH_NAMES


@dataclass(frozen=True)
class Candidate:
    """One path on one backend: what it costs, or why it cannot run."""

    path: str
    backend: str
    flops: int = 0
    bytes: int = 0
    workspace_bytes: int = 0
    seconds: float = float("inf")
    reason: str = ""


@dataclass(frozen=True)
class Plan:
    """The choice for one shape, and every path that was considered.

    Attributes:
        path, backend: what will run.
        flops: operations (two a multiply-add) of the forward pass, and of the backward pass if it was asked for.
        bytes: memory traffic that the cost model counts for them.
        dense_flops: operations of the dense layer for the same.
        workspace_bytes: most memory that intermediates take at a time.
        seconds: predicted time; good for comparing paths, not for quoting.
        candidates: all paths, the fastest first.
    """

    path: str
    backend: str
    flops: int
    bytes: int
    dense_flops: int
    workspace_bytes: int
    seconds: float
    title: str
    candidates: tuple[Candidate, ...]

    def explain(self) -> str:
        """A printable table of every path that was considered and why this one won."""
        lines = [
            self.title,
            f"{'path':<18}{'backend':<9}{'ops/dense':>10}{'MB moved':>10}{'workspace':>12}  predicted",
        ]
        for c in self.candidates:
            head = f"{c.path:<18}{c.backend:<9}"
            if c.reason:
                lines.append(f"{head} cannot run: {c.reason}")
                continue
            chosen = "  <- chosen" if (c.path, c.backend) == (self.path, self.backend) else ""
            lines.append(
                f"{head}{c.flops / max(1, self.dense_flops):>10.3f}{c.bytes / 1e6:>10.1f}"
                f"{c.workspace_bytes / 2**20:>8.1f} MiB{c.seconds * 1e3:>8.3f} ms{chosen}"
            )
        return "\n".join(lines)


def plan(
    M: int,
    scalers_shape: tuple[int, ...],
    template_shape: tuple[int, ...],
    dtype: torch.dtype,
    device: torch.device | str,
    *,
    needs_grad: bool = True,
    path: str = "auto",
    backend: str = "auto",
) -> Plan:
    """How ``kron_linear`` would compute ``M`` rows, and why.

    Args:
        M: product of the leading dimensions of ``x`` (for a convolution, batch times output pixels).
        scalers_shape: ``(N, m, n)``.
        template_shape: ``(N, p, q, *kernel)``, or ``(p, q)``.
        dtype: float64, float32, bfloat16 or float16.
        device: where the tensors are.
        needs_grad: count and choose for forward and backward together; else for the forward pass alone.
        path, backend: force one, or ``"auto"``.

    Raises:
        ValueError: sizes, dtype or names do not fit. RuntimeError: the path or backend cannot run here.
    """
    if isinstance(M, bool) or not isinstance(M, int) or M < 0:
        raise ValueError(f"M must be an int, 0 or more, got {M!r}")
    if len(scalers_shape) != 3 or min(scalers_shape) < 1:
        raise ValueError(f"scalers_shape must be (N, m, n), all positive, got {tuple(scalers_shape)}")
    N, m, n = scalers_shape
    full = (N, *template_shape) if len(template_shape) == 2 else tuple(template_shape)
    if len(full) < 3 or min(full) < 1 or full[0] != N:
        raise ValueError(
            f"template_shape must be (p, q) or (N, p, q, *kernel) with N={N}, all positive, got {tuple(template_shape)}"
        )
    if dtype not in DTYPES:
        raise ValueError(f"dtype must be float64, float32, bfloat16 or float16, got {dtype}")
    p, q, *kernel = full[1:]
    shape = KronShape(N, m, n, p, q, m * p, n * q, LAYOUTS[0], tuple(kernel))
    device_type = torch.device(device).type
    require_runnable(path, backend, device_type, dtype, kernel=shape.kernel)
    return choose(shape, M, dtype, device_type, needs_grad, path, backend)


@lru_cache(maxsize=4096)
def choose(
    shape: KronShape,
    M: int,
    dtype: torch.dtype,
    device_type: str,
    train: bool,
    path: str,
    backend: str,
    groups: int = 1,
) -> Plan:
    """The plan for arguments that are checked already: what the operators call."""
    rates = rates_for(device_type, dtype)
    candidates = []
    for name in PATH_NAMES[1:]:
        for on in ("torch", "triton"):
            reason = why_not(name, on, device_type, dtype, kernel=shape.kernel, groups=groups, auto=backend == "auto")
            if reason:
                candidates.append(Candidate(name, on, reason=reason))
                continue
            phases = ("forward", "backward") if train else ("forward",)
            costs = [PATHS[name].cost(shape, M, phase, dtype.itemsize, device_type) for phase in phases]
            candidates.append(_estimate(name, on, costs, dtype.itemsize, rates))
    candidates.sort(key=lambda c: c.seconds)
    best = next(c for c in candidates if not c.reason and path in ("auto", c.path) and backend in ("auto", c.backend))
    dense = (6 if train else 2) * M * shape.out_features * shape.in_features * shape.taps
    title = (
        f"M={M} N={shape.N} m={shape.m} n={shape.n} p={shape.p} q={shape.q}"
        + (f" kernel={'x'.join(map(str, shape.kernel))}" if shape.kernel else "")
        + f" {str(dtype).removeprefix('torch.')} on {device_type}, {'forward + backward' if train else 'forward'}; "
        f"rates: {rates.name}"
    )
    return Plan(
        best.path,
        best.backend,
        best.flops,
        best.bytes,
        dense,
        best.workspace_bytes,
        best.seconds,
        title,
        tuple(candidates),
    )


def _estimate(path: str, backend: str, costs: list[Cost], itemsize: int, rates: Rates) -> Candidate:
    products = [product for cost in costs for product in cost.products]
    return Candidate(
        path,
        backend,
        flops=sum(product.flops for product in products),
        bytes=itemsize * sum(product.elements for product in products) + 2 * itemsize * sum(c.copied for c in costs),
        workspace_bytes=max(cost.workspace for cost in costs),
        seconds=sum(rates.seconds(cost, itemsize) for cost in costs),
    )
