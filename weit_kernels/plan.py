"""Which path and backend computes a shape: operation counts, a cost model, the choice, and ``explain()``."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache

import torch

from weit_kernels import cpp, tune
from weit_kernels.backends import pairs, require_runnable, why_not
from weit_kernels.paths import PATHS
from weit_kernels.paths.blocks import GPU_BLOCK_BYTES, Cost, Product
from weit_kernels.paths.panel import WORKSPACE_BYTES
from weit_kernels.rates import REACHED, GpuRates, Rates, compiled_unproven, rates_for
from weit_kernels.shapes import DTYPES, LAYOUTS, KronShape, as_int, sizes

NEAREST = 4  # how many candidates WEIT_TUNE=1 times
ROWS_PER_TILE = 128  # on_the_fly makes a weight tile again for so many rows


@dataclass(frozen=True)
class Request:
    """What a call asks for, as far as the planner cares; ``rows`` are tokens, or output pixels of a convolution."""

    shape: KronShape
    rows: int
    dtype: torch.dtype
    device: torch.device
    train: bool
    path: str = "auto"
    backend: str = "auto"
    groups: int = 1
    pointwise: bool = True
    unit_stride: bool = False
    dilated: bool = False
    channels_last: bool = False

    @property
    def forced(self) -> bool:
        """Whether there is nothing to choose."""
        return "auto" not in (self.path, self.backend)

    def allows(self, path: str, backend: str) -> bool:
        """Whether a path on a backend is what was asked for."""
        return self.path in ("auto", path) and self.backend in ("auto", backend)

    @property
    def key(self) -> str:
        """The key of the timings of this request: rows count by powers of two."""
        s, tf32 = self.shape, self.dtype == torch.float32 and tune.allows_tf32()
        sizes = f"N {s.N} m {s.m} n {s.n} p {s.p} q {s.q} out {s.out_features} in {s.in_features}"
        conv = f"kernel {s.kernel} groups {self.groups} pointwise {self.pointwise}" if s.kernel else "linear"
        conv += " channels last" if self.channels_last else ""
        rows = f"rows {tune.bucket(self.rows)}"
        dtype = "tf32" if tf32 else str(self.dtype).removeprefix("torch.")
        phases, choice = "train" if self.train else "infer", f"{self.path} {self.backend}"
        # What was timed without the compiled kernels says nothing of them.
        built = "without" if why_not("templates_first", "cuda", self.device.type, self.dtype) else "with"
        return tune.key("paths", self.device, sizes, conv, rows, dtype, phases, choice, f"{built} compiled kernels")


@dataclass(frozen=True)
class Candidate:
    """One path on one backend: what it costs, why it cannot run, or why ``"auto"`` does not consider it (yet)."""

    path: str
    backend: str
    flops: int = 0
    bytes: int = 0
    workspace_bytes: int = 0
    seconds: float = float("inf")
    reason: str = ""
    unproven: str = ""
    timed: float | None = None

    @property
    def name(self) -> str:
        """How tuning calls it."""
        return f"{self.path} on {self.backend}"


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
        M: product of the leading dimensions of ``x`` (for a convolution, batch times output pixels).
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
    pointwise = all(taps == 1 for taps in kernel)
    require_runnable(path, backend, where.type, dtype, kernel=shape.kernel, pointwise=pointwise, unit_stride=True)
    return choose(Request(shape, rows, dtype, where, needs_grad, path, backend, pointwise=pointwise, unit_stride=True))


def choose(request: Request) -> Plan:
    """The plan for arguments that are checked already: what the operators call."""
    candidates, rates = _candidates(request)
    entry = None if request.forced or request.device.type != "cuda" else tune.cache().get(request.key)
    if entry:
        candidates = tuple(replace(c, timed=entry.seconds.get(c.name)) for c in candidates)
    able = [c for c in candidates if not c.reason and request.allows(c.path, c.backend)]
    proven = [c for c in able if not c.unproven or request.backend != "auto"]
    winner = next((c for c in able if entry and c.name == entry.winner), None)
    if not able:  # autocast changed the dtype after it was checked
        raise RuntimeError(next(c.reason for c in candidates if request.allows(c.path, c.backend)))
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
    return Plan(best.path, best.backend, *costs, title, candidates, tuned=winner is not None)


def contenders(request: Request, mode: str) -> list[Candidate]:
    """What is worth timing: the nearest by prediction and the best plain path, or with ``"full"`` all that can run."""
    able = [c for c in _candidates(request)[0] if not c.reason and request.allows(c.path, c.backend)]
    if mode == "full":
        return able
    plain = next((c for c in able if c.backend == "torch"), None)
    return [c for i, c in enumerate(able) if i < NEAREST or c is plain]


def cost(request: Request, path: str, phase: str) -> Cost:
    """What one phase of a path does, the same on every backend."""
    s, M, itemsize, device_type = request.shape, request.rows, request.dtype.itemsize, request.device.type
    if path != "on_the_fly":
        return PATHS[path].cost(s, M, phase, itemsize, device_type)
    # The weight is made anew for each tile of rows; dT and dS are the panel's.
    tiles = Product(-(-M // ROWS_PER_TILE), s.m * s.n, s.N, s.p * s.q)
    product = Product(1, M, s.n * s.q, s.m * s.p)
    if phase == "forward":
        return Cost([tiles, product])
    panel = PATHS["panel"].cost(s, M, phase, itemsize, device_type)
    return replace(panel, products=[tiles, product, *panel.products[2:]])


def work(request: Request, path: str, phase: str, columns: int = 0) -> Cost:
    """What one phase takes time for: the cost, and the zeros that fill panels of so many ``columns``; 0: none.

    Columns of a result are filled: those of templates, and where the last product makes features of tokens, those. In a
    convolution so is the inner axis of each tap. Where pixels are the columns (csrc/cpu/lanes.h), nothing is filled.
    """
    s = request.shape
    lanes = s.kernel and request.pointwise and s.taps == 1 and phase == "forward"
    if not columns or lanes:
        return cost(request, path, phase)

    def filled(p: int, q: int) -> Cost:
        return cost(replace(request, shape=replace(s, p=p, q=q)), path, phase)

    p, q = (-(-size // columns) * columns for size in (s.p, s.q))
    if s.kernel:
        return filled(p, q)
    of_templates, of_tokens = filled(p, s.q), filled(s.p, q)
    if path == "scalers_first":
        of_templates, of_tokens = of_tokens, of_templates
    last = {"templates_first": {"backward": 2}, "scalers_first": {"forward": 1}}[path].get(phase)
    if last is not None:
        of_templates.products[last] = of_tokens.products[last]
    return of_templates


def _candidates(request: Request) -> tuple[tuple[Candidate, ...], str]:
    """Every path on every backend, the fastest by prediction first, and the name of the rates."""
    # May change: a GPU is measured as soon as it may be.
    conv = bool(request.shape.kernel)
    plain, compiled = (rates_for(request.device, request.dtype, backend, conv) for backend in ("torch", "cpp"))
    parts = cpp.FIXED_PARTS if torch.are_deterministic_algorithms_enabled() else torch.get_num_threads()
    return _estimates(request, plain, compiled, parts), plain.name


@lru_cache(maxsize=4096)
def _estimates(
    request: Request, plain: Rates | GpuRates, compiled: Rates | GpuRates, parts: int
) -> tuple[Candidate, ...]:
    r, found = request, []
    for path, backend in pairs():
        reason = why_not(
            path,
            backend,
            r.device.type,
            r.dtype,
            kernel=r.shape.kernel,
            groups=r.groups,
            pointwise=r.pointwise,
            unit_stride=r.unit_stride,
        )
        if reason:
            found.append(Candidate(path, backend, reason=reason))
            continue
        rates = compiled if backend == "cpp" else plain
        phases = ("forward", "backward") if r.train else ("forward",)
        costs = [cost(r, path, phase) for phase in phases]
        products = [product for c in costs for product in c.products]
        compulsory = _compulsory(r)
        found.append(
            Candidate(
                path,
                backend,
                flops=sum(product.flops for product in products),
                bytes=r.dtype.itemsize * (sum(p.elements for p in products) + 2 * sum(c.copied for c in costs)),
                workspace_bytes=max(
                    _workspace(r, c, path, backend, phase, parts) for c, phase in zip(costs, phases, strict=True)
                ),
                seconds=sum(
                    rates.seconds(
                        work(r, path, phase, rates.columns),
                        r.dtype.itemsize,
                        _reached(path, backend, phase),
                        moved,
                    )
                    for phase, moved in zip(phases, (compulsory, 2 * compulsory), strict=False)
                ),
                unproven=_unproven(backend, r),
            )
        )
    return tuple(sorted(found, key=lambda c: c.seconds))


def _reached(path: str, backend: str, phase: str) -> float:
    """What one kernel that does a phase without intermediates in device memory reaches of the peak; 0: there is none."""
    return 0.0 if path == "on_the_fly" and phase != "forward" else REACHED.get((path, backend), 0.0)


def _workspace(request: Request, cost: Cost, path: str, backend: str, phase: str, parts: int) -> int:
    """Bytes beside the results: what the path says, or of fused kernels what they keep and sum in."""
    if backend == "cpp":
        return cpp.workspace_bytes(request.shape, path, request.rows, request.dtype, phase == "backward", parts)
    if not _reached(path, backend, phase):
        return cost.workspace
    if phase == "forward":
        return 0
    # The CUDA kernels' backward pass takes panels where those are faster.
    return WORKSPACE_BYTES if backend == "cuda" else GPU_BLOCK_BYTES


def _compulsory(request: Request) -> int:
    """Numbers that the forward pass must read or write, each once; the backward pass moves about twice as many."""
    s = request.shape
    return request.rows * (s.in_features + s.out_features) + s.N * (s.m * s.n + s.p * s.q * s.taps)


def _unproven(backend: str, request: Request) -> str:
    """Why ``"auto"`` leaves a backend alone until a timing says otherwise; empty for plain torch."""
    if backend == "torch":
        return ""
    if backend in ("triton", "cuda") and request.device.type == "cuda":
        return "not timed here yet; the first call on the GPU does it unless WEIT_TUNE=0"
    if backend == "triton":
        return "Triton's interpreter is for tests: ask for backend='triton'"
    if request.dilated:  # each block reads the lines between the taps too, which no prediction counts
        return "not timed on dilated windows; ask for backend='cpp'"
    return compiled_unproven(request.dtype, bool(request.shape.kernel))
