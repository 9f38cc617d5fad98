"""The compiled CPU kernels: both orders, fused in blocks of tokens that stay in one core's cache. Sources: ``csrc/``."""

from __future__ import annotations

import importlib
from types import SimpleNamespace

import torch
from torch import Tensor

from weit_kernels.paths.convolution import ConvArgs
from weit_kernels.shapes import KronShape

Grads = tuple[Tensor | None, Tensor | None, Tensor | None]

DTYPES = (torch.float32, torch.float64, torch.bfloat16)


def _unfit(built: str, here: str, *, whole: bool = True) -> str:
    """Why an extension built for torch ``built`` cannot work with torch ``here``: C++ interfaces change between minors.

    ``whole``: it has what the planner reads of it.
    """
    minor = ".".join(here.split(".")[:2])
    if built != minor:
        return f"the compiled extension is for torch {built}, this is {minor}: build it again"
    return "" if whole else "the compiled extension is of older sources: build it again"


try:
    _C = importlib.import_module("weit_kernels._C")  # registers torch.ops.weit_cpp
except ImportError as error:
    _missing = isinstance(error, ModuleNotFoundError) or "cannot import name" in str(error)
    _reason = (
        "the compiled extension was not built (csrc/README.md)"
        if _missing
        else f"the compiled extension does not load: {error}"
    )
else:
    _built = getattr(_C, "torch", "another version")
    _reason = _unfit(_built, torch.__version__, whole=hasattr(_C, "fixed_parts"))


def why_not() -> str:
    """Why the extension cannot be used here; empty if it can."""
    return _reason


def supports(dtype: torch.dtype) -> str:
    """Why the kernels cannot compute in a dtype; empty if they can."""
    return "" if dtype in DTYPES else f"the compiled kernels take float32, float64 and bfloat16, not {dtype}"


def panel_width(dtype: torch.dtype) -> int:
    """Columns of a panel: two registers of what is summed."""
    registers = {"generic": 32, "avx2": 64}.get(_C.instruction_set(), 128)
    return registers // max(4, dtype.itemsize)


def multiplies_pairs() -> bool:
    """Whether this is a CPU of AMD whose vectors multiply pairs of 16-bit numbers, Zen 4 or newer."""
    return not _reason and _C.amd and "avx512_bf16" in _C.instruction_sets()


def parts() -> int:
    """Of sums over rows: one a thread, but as many as ever where the result must not depend on the number of threads."""
    fixed = not _reason and torch.are_deterministic_algorithms_enabled()
    return _C.fixed_parts if fixed else torch.get_num_threads()


def workspace_bytes(
    s: KronShape,
    path: str,
    rows: int,
    dtype: torch.dtype,
    backward: bool,
    parts: int,
    least: int = 1,
    *,
    lanes: bool = False,
) -> int:
    """About what a call takes beside its results: templates in panels, sums over rows in ``parts``, one core's block.

    A block reads ``least`` rows, or pixels, even where they exceed a core's cache. With ``lanes``, where pixels are the
    columns of panels, it holds the intermediate of a square of them, however many templates there are. Other cores have a
    block each as well; like the rest it stays with its thread for later calls, unless it is one of more than 64 MiB.
    """
    itemsize, passes = max(4, dtype.itemsize), 2 if backward else 1
    whole, others = (s.n * s.q, s.m + s.N * s.n) if path == "templates_first" else (s.m * s.p, s.n + s.N * s.m)
    row = itemsize * (whole + others * panel_width(dtype))
    factors = itemsize * s.N * s.p * s.q * s.taps
    sums = factors + itemsize * s.N * s.m * s.n if backward else 0
    if backward:
        parts = min(parts, max(_C.few_parts, _C.most_sums // sums))
    by_tap = passes * factors if s.taps > 1 else 0
    square = itemsize * s.N * (s.n if path == "templates_first" else s.m) * panel_width(dtype) ** 2 if lanes else 0
    block = max(row * least + square, min(_C.block_bytes(), passes * row * -(-rows // parts)))
    return passes * factors + by_tap + min(parts, rows) * sums + block


def _path(scalers_first: bool) -> SimpleNamespace:
    """The functions of one order, on block-layout operands as in ``weit_kernels.paths``."""

    def linear(x: Tensor, T: Tensor, S: Tensor, bias: Tensor | None, out: int) -> Tensor:
        return torch.ops.weit_cpp.chain.default(x, T, S, bias, out, scalers_first)

    def linear_backward(dy: Tensor, x: Tensor, T: Tensor, S: Tensor, need: list[bool]) -> Grads:
        return _wanted(torch.ops.weit_cpp.chain_backward.default(dy, x, T, S, need, scalers_first), need)

    def conv(x: Tensor, T: Tensor, S: Tensor, bias: Tensor | None, out: int, args: ConvArgs) -> Tensor:
        """``x (B, in, *spatial)`` → ``(B, out, *spatial')``; what ``backends.why_not`` lets through."""
        y = torch.ops.weit_cpp.conv.default(_images(x), _taps(T), S, bias, out, *_axes(args), scalers_first)
        return y if x.dim() == 4 else y.view(x.shape[0], out, *args.output_size(x.shape[2:], T.shape[3:]))

    def conv_backward(dy: Tensor, x: Tensor, T: Tensor, S: Tensor, need: list[bool], args: ConvArgs) -> Grads:
        """``dy (B, out, *spatial')``, ``x (B, in, *spatial)`` → gradients of ``x``, ``T`` and ``S``."""
        operands = (_images(dy), _images(x), _taps(T), S)
        grads = torch.ops.weit_cpp.conv_backward.default(*operands, need, *_axes(args), scalers_first)
        dx, dT, dS = _wanted(grads, need)
        return None if dx is None else dx.view(x.shape), None if dT is None else dT.view(T.shape), dS

    return SimpleNamespace(linear=linear, linear_backward=linear_backward, conv=conv, conv_backward=conv_backward)


def _wanted(grads: tuple[Tensor, ...], need: list[bool]) -> Grads:
    dx, dT, dS = (grad if wanted else None for grad, wanted in zip(grads, need, strict=True))
    return dx, dT, dS


def _images(maps: Tensor) -> Tensor:
    """Maps of two axes: of any other number, which only convolutions of one tap have, all pixels in one line."""
    return maps if maps.dim() == 4 else maps.flatten(2).unsqueeze(2)


def _taps(T: Tensor) -> Tensor:
    return T if T.dim() == 5 else T.flatten(3).unsqueeze(3)


def _axes(args: ConvArgs) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Padding and dilation of two axes."""
    return (args.padding, args.dilation) if len(args.padding) == 2 else ((0, 0), (1, 1))


PATHS = {"templates_first": _path(False), "scalers_first": _path(True)}
