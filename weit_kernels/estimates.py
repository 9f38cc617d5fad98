"""What each path on each backend costs for a request: operations, memory, predicted time."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from math import prod

import torch

from weit_kernels import cpp, tune
from weit_kernels.backends import LINEAR, Form, pairs, why_not
from weit_kernels.paths import PATHS
from weit_kernels.paths.blocks import GPU_BLOCK_BYTES, WORKSPACE_BYTES, Cost, Maps, Product
from weit_kernels.paths.convolution import ConvArgs, in_step
from weit_kernels.rates import REACHED, GpuRates, Rates, compiled_unproven, rates_for
from weit_kernels.shapes import KronShape

ROWS_PER_TILE = 128  # on_the_fly makes a weight tile again for so many rows


@dataclass(frozen=True)
class Request:
    """What a call asks for, as far as the planner cares; ``rows`` are tokens, or output pixels of a convolution.

    ``conv`` says how a convolution moves, by default in steps of one; ``size`` is that of its maps, empty where nobody
    knows: an image is a pixel then.
    """

    shape: KronShape
    rows: int
    dtype: torch.dtype
    device: torch.device
    train: bool
    path: str = "auto"
    backend: str = "auto"
    conv: ConvArgs | None = None
    size: tuple[int, ...] = ()
    channels_last: bool = False

    @property
    def form(self) -> Form:
        """What backends are told of the layer."""
        return Form.of(self.shape.kernel, self.conv) if self.shape.kernel else LINEAR

    @property
    def forced(self) -> bool:
        """Whether there is nothing to choose."""
        return "auto" not in (self.path, self.backend)

    @property
    def maps(self) -> Maps:
        """What the paths count blocks in."""
        conv = self.conv
        pixels = prod(conv.output_size(self.size, self.shape.kernel)) if conv and self.size else 1
        return Maps(prod(self.size), max(1, pixels), self.form.groups > 1)

    def allows(self, path: str, backend: str) -> bool:
        """Whether a path on a backend is what was asked for."""
        return self.path in ("auto", path) and self.backend in ("auto", backend)

    @property
    def key(self) -> str:
        """The key of the timings of this request: rows count by powers of two."""
        s, tf32 = self.shape, self.dtype == torch.float32 and tune.allows_tf32()
        sizes = f"N {s.N} m {s.m} n {s.n} p {s.p} q {s.q} out {s.out_features} in {s.in_features}"
        conv = "linear"
        if s.kernel:
            moves = self.conv or ConvArgs.plain(len(s.kernel))
            conv = f"kernel {s.kernel} stride {moves.stride} dilation {moves.dilation}"
            conv += f" groups {moves.groups} pointwise {self.form.pointwise}"
            conv += f" in step {in_step(self.size, self.dtype.itemsize)}" if self.form.pointwise else ""
        conv += " channels last" if self.channels_last else ""
        rows = f"rows {tune.bucket(self.rows)}"
        dtype = "tf32" if tf32 else str(self.dtype).removeprefix("torch.")
        phases, choice = "train" if self.train else "infer", f"{self.path} {self.backend}"
        # What was timed without the compiled kernels says nothing of them.
        built = "without" if why_not("templates_first", "cuda", self.device, self.dtype) else "with"
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


def candidates(request: Request) -> tuple[tuple[Candidate, ...], str]:
    """Every path on every backend, the fastest by prediction first, and the name of the rates."""
    # May change: a GPU is measured as soon as it may be.
    conv = bool(request.shape.kernel)
    measure = not request.forced  # where there is nothing to choose, predictions are worth no timing
    plain, compiled = (
        rates_for(request.device, request.dtype, backend, conv, measure=measure) for backend in ("torch", "cpp")
    )
    return estimates(request, plain, compiled, cpp.parts()), plain.name


def cost(request: Request, path: str, phase: str) -> Cost:
    """What one phase of a path does, the same on every backend."""
    s, M, itemsize, device_type = request.shape, request.rows, request.dtype.itemsize, request.device.type
    if path != "on_the_fly":
        return PATHS[path].cost(s, M, phase, itemsize, device_type, request.maps)
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
    convolution so is the inner axis of each tap. Where pixels are the columns, nothing is filled.
    """
    s = request.shape
    if not columns or _in_lanes(request, phase):
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


@lru_cache(maxsize=64)  # what was chosen is kept by choice.py; this serves questions about one shape
def estimates(
    request: Request, plain: Rates | GpuRates, compiled: Rates | GpuRates, parts: int
) -> tuple[Candidate, ...]:
    r, found = request, []
    for path, backend in pairs():
        if reason := why_not(path, backend, r.device, r.dtype, r.form):
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
        backward, least, lanes = phase == "backward", _least_pixels(request), _in_lanes(request, phase)
        return cpp.workspace_bytes(
            request.shape, path, request.rows, request.dtype, backward, parts, least, lanes=lanes
        )
    copies = _copied(request, path, backend, phase)
    if not _reached(path, backend, phase):
        return cost.workspace + copies
    if phase == "forward":
        return copies
    # The CUDA kernels' backward pass takes panels where those are faster.
    bound = WORKSPACE_BYTES if backend == "cuda" else GPU_BLOCK_BYTES
    return copies + max(bound, _least_sums(request.shape, path, backend))


def _least_sums(s: KronShape, path: str, backend: str) -> int:
    """Bytes of the partial sums of ``dT`` and ``dS`` where tokens are not shared out, which no bound makes fewer.

    Of ``dT`` Triton has one for each 32 columns of ``S``, of ``dS`` both have one for each block of template rows.
    """
    m, n, p, q = s.m, s.n, s.p, s.q
    if path == "scalers_first" or (backend == "cuda" and m < n):  # the sides are exchanged
        m, n, p, q = n, m, q, p
    rows = (128 if backend == "cuda" else 64) // min(8, 1 << (s.N - 1).bit_length())  # a block's, or more
    of_T = 1 if backend == "cuda" else -(-n // 32)
    return 4 * s.N * (of_T * p * q + -(-p // rows) * m * n)


def _copied(request: Request, path: str, backend: str, phase: str) -> int:
    """Bytes of maps that a convolution of one tap puts in order of rows: of ``x`` and ``y``, or ``dy``, ``x`` and ``dx``."""
    s, size = request.shape, request.size
    by_rows = path != "panel" or not in_step(size, request.dtype.itemsize)
    pointwise = s.kernel and request.form.pointwise and not request.channels_last and prod(size) > 1
    if backend not in ("triton", "cuda") or not pointwise or not by_rows:
        return 0
    numbers = s.in_features * (1 if phase == "forward" else 2) + s.out_features
    return request.rows * numbers * request.dtype.itemsize


def _in_lanes(request: Request, phase: str) -> bool:
    """Whether the compiled kernels take pixels as the columns of panels (csrc/cpu/lanes.h)."""
    return bool(request.shape.kernel) and request.form.pointwise and phase == "forward"


def _least_pixels(request: Request) -> int:
    """Pixels that the smallest block of the compiled kernels reads: with a window a line and what is around it."""
    conv, size, kernel = request.conv, request.size, request.shape.kernel
    if conv is None or not size or conv.pointwise(kernel):
        return 1
    above, beside = ((count - 1) * step for count, step in zip(kernel, conv.dilation, strict=True))
    return (1 + above) * (max(size[-1], conv.output_size(size, kernel)[-1]) + beside)


def _compulsory(request: Request) -> int:
    """Numbers that the forward pass must read or write, each once; the backward pass moves about twice as many."""
    s = request.shape
    inputs = request.rows // request.maps.outputs * request.maps.inputs
    return inputs * s.in_features + request.rows * s.out_features + s.N * (s.m * s.n + s.p * s.q * s.taps)


def _unproven(backend: str, request: Request) -> str:
    """Why ``"auto"`` leaves a backend alone until a timing says otherwise; empty for plain torch."""
    if backend == "torch":
        return ""
    if backend in ("triton", "cuda") and request.device.type == "cuda":
        return "not timed here yet; the first call on the GPU does it unless WEIT_TUNE=0"
    if backend == "triton":
        return "Triton's interpreter is for tests: ask for backend='triton'"
    # Each block reads the lines between the taps too, which no prediction counts.
    if request.conv and set(request.conv.dilation) != {1}:
        return "not timed on dilated windows; ask for backend='cpp'"
    return compiled_unproven(request.dtype, bool(request.shape.kernel))
