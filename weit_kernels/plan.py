"""Which path and backend computes a shape: the choice among the candidates, and ``explain()``."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from weit_kernels import timings
from weit_kernels.backends import require_runnable
from weit_kernels.estimates import Candidate, Request, candidates
from weit_kernels.shapes import DTYPES, LAYOUTS, KronShape, as_int, sizes

NEAREST = 4  # how many candidates WEIT_TUNE=1 times


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
        candidates: all paths, the fastest by prediction first.
        tuned: whether timings on this kind of device decided, not the prediction.
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
    tuned: bool = False

    def explain(self) -> str:
        """A printable table of every path that was considered and why this one won."""
        lines = [
            self.title + ("; chosen by timing" if self.tuned else ""),
            f"{'path':<18}{'backend':<9}{'ops/dense':>10}{'MB moved':>10}{'workspace':>12}      predicted",
        ]
        for c in self.candidates:
            head = f"{c.path:<18}{c.backend:<9}"
            if c.reason:
                lines.append(f"{head} cannot run: {c.reason}")
                continue
            line = f"{head}{c.flops / max(1, self.dense_flops):>10.3f}{c.bytes / 1e6:>10.1f}"
            line += f"{c.workspace_bytes / 2**20:>8.1f} MiB {c.seconds * 1e3:>10.3f} ms"
            if c.timed is not None:
                line += f"  timed {c.timed * 1e3:.3f} ms"
            if (c.path, c.backend) == (self.path, self.backend):
                line += "  <- chosen"
            elif c.unproven and c.timed is None:
                line += f"  not considered: {c.unproven}"
            lines.append(line)
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
    """How ``kron_linear``, or a convolution of stride 1, would compute ``M`` rows, and why.

    Args:
        M: product of the leading dimensions of ``x`` (for a convolution, batch times output pixels; of how many images is
            not known here: blocks are counted as if they could be cut anywhere, calls take whole images).
        scalers_shape: ``(N, m, n)``.
        template_shape: ``(N, p, q, *kernel)``, or ``(p, q)``.
        dtype: float64, float32, bfloat16 or float16.
        device: where the tensors are.
        needs_grad: count and choose for forward and backward together; else for the forward pass alone.
        path, backend: force one, or ``"auto"``.

    Raises:
        TypeError: a shape is no sequence of ints. ValueError: sizes, dtype, device or names do not fit.
        RuntimeError: the path or backend cannot run here.
    """
    rows = as_int(M)
    if rows is None or rows < 0:
        raise ValueError(f"M must be an int, 0 or more, got {M!r}")
    scaler_sizes = sizes("scalers_shape", scalers_shape)
    if len(scaler_sizes) != 3:
        raise ValueError(f"scalers_shape must be (N, m, n), got {scaler_sizes}")
    N, m, n = scaler_sizes
    template_sizes = sizes("template_shape", template_shape)
    full = (N, *template_sizes) if len(template_sizes) == 2 else template_sizes
    if len(full) < 3 or full[0] != N:
        raise ValueError(f"template_shape must be (p, q) or (N, p, q, *kernel) with N={N}, got {template_sizes}")
    if dtype not in DTYPES:
        raise ValueError(f"dtype must be float64, float32, bfloat16 or float16, got {dtype}")
    p, q, *kernel = full[1:]
    shape = KronShape(N, m, n, p, q, m * p, n * q, LAYOUTS[0], tuple(kernel))
    try:
        where = torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise ValueError(f"device must be one that torch knows, got {device!r}") from error
    request = Request(shape, rows, dtype, where, needs_grad, path, backend)
    require_runnable(path, backend, where, dtype, request.form)
    return choose(request)


def choose(request: Request) -> Plan:
    """The plan for arguments that are checked already: what the operators call."""
    found, rates = candidates(request)
    entry = None if request.forced or request.device.type != "cuda" else timings.cache().get(request.key)
    if entry:
        found = tuple(replace(c, timed=entry.seconds.get(c.name)) for c in found)
    able = [c for c in found if not c.reason and request.allows(c.path, c.backend)]
    proven = [c for c in able if not c.unproven or request.backend != "auto"]
    winner = next((c for c in able if entry and c.name == entry.winner), None)
    if not able:  # autocast changed the dtype after it was checked
        raise RuntimeError(next(c.reason for c in found if request.allows(c.path, c.backend)))
    best = winner or (proven or able)[0]
    s, train = request.shape, request.train
    dense = (6 if train else 2) * request.rows * s.out_features * s.in_features * s.taps
    title = (
        f"M={request.rows} N={s.N} m={s.m} n={s.n} p={s.p} q={s.q}"
        + (f" kernel={'x'.join(map(str, s.kernel))}" if s.kernel else "")
        + f" {str(request.dtype).removeprefix('torch.')} on {request.device.type}, "
        f"{'forward + backward' if train else 'forward'}; rates: {rates}"
    )
    costs = (best.flops, best.bytes, dense, best.workspace_bytes, best.seconds)
    return Plan(best.path, best.backend, *costs, title, found, tuned=winner is not None)


def contenders(request: Request, mode: str) -> list[Candidate]:
    """What is worth timing: the nearest by prediction and the best plain path, or with ``"full"`` all that can run."""
    able = [c for c in candidates(request)[0] if not c.reason and request.allows(c.path, c.backend)]
    if mode == "full":
        return able
    plain = next((c for c in able if c.backend == "torch"), None)
    return [c for i, c in enumerate(able) if i < NEAREST or c is plain]
