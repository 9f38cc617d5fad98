"""Which path runs on which backend, why not the others, and the module that does it."""

from __future__ import annotations

import importlib
import importlib.util
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from types import ModuleType

import torch

from weit_kernels import cpp
from weit_kernels.paths import PATHS
from weit_kernels.paths.convolution import ConvArgs
from weit_kernels.shapes import BACKENDS, check_choice
from weit_kernels.shapes import PATHS as PATH_NAMES


@dataclass(frozen=True)
class Form:
    """A layer as backends tell layers apart; by default a linear one.

    Attributes:
        axes: spatial axes, 0 of a linear layer.
        groups: of a convolution.
        pointwise: whether it is one matrix product, for each image if it is a convolution.
        unit_stride: whether it is known to move by one.
    """

    axes: int = 0
    groups: int = 1
    pointwise: bool = True
    unit_stride: bool = True

    @classmethod
    def of(cls, kernel: Sequence[int], conv: ConvArgs | None = None) -> Form:
        """The form of a convolution with windows of the sizes ``kernel``; by default with stride 1 and no padding."""
        conv = conv or ConvArgs.plain(len(kernel))
        return cls(len(kernel), conv.groups, conv.pointwise(kernel), all(step == 1 for step in conv.stride))


LINEAR = Form()
_EXCHANGED = {"templates_first": "scalers_first", "scalers_first": "templates_first"}


def exchanged(path: str) -> str:
    """What a path becomes where templates and scalers trade places, as they do in interleaved linear layers."""
    return _EXCHANGED.get(path, path)


def module(path: str, backend: str) -> ModuleType:
    """The module that computes ``path`` on ``backend``; Triton's and CUDA's are imported on first use."""
    if backend == "torch":
        return PATHS[path]
    return importlib.import_module(f"weit_kernels.{backend}").PATHS[path]


def pairs() -> Iterator[tuple[str, str]]:
    """Every path on every backend, in the order in which they are listed."""
    return ((path, backend) for path in PATH_NAMES[1:] for backend in BACKENDS[1:])


def why_not(path: str, backend: str, device: torch.device, dtype: torch.dtype, form: Form = LINEAR) -> str:
    """Why a path cannot run on a backend; empty if it can."""
    if form.groups > 1 and path != "panel":
        return f"groups={form.groups}: rows of the weight meet different inputs, which only panel handles"
    if backend == "cpp":
        return _why_not_cpp(path, device, dtype, form)
    if backend == "triton":
        return _why_not_triton(path, device, dtype, form)
    if backend == "cuda":
        return _why_not_cuda(path, device, dtype, form)
    return "weight tiles made inside the product need a fused kernel: use backend='triton'" if path not in PATHS else ""


def _why_not_triton(path: str, device: torch.device, dtype: torch.dtype, form: Form) -> str:
    if dtype == torch.float64:
        return "Triton kernels sum in float32, which is too little for float64"
    if path != "panel" and not form.pointwise:
        return "the fused kernels are matrix products: one tap, stride 1 and no padding; panel does other convolutions"
    if not _installed("triton"):
        return "triton is not installed"
    if device.type != "cuda" and os.environ.get("TRITON_INTERPRET") != "1":
        return f"Triton needs a GPU (or TRITON_INTERPRET=1), the tensors are on {device.type}"
    return "" if path in _paths("triton") else f"{path} has no Triton kernels"


def _why_not_cpp(path: str, device: torch.device, dtype: torch.dtype, form: Form) -> str:
    if device.type != "cpu":
        return f"the compiled kernels are for CPUs, the tensors are on {device.type}"
    if reason := cpp.why_not():
        return reason
    if path not in cpp.PATHS:
        return f"{path} has no compiled kernels"
    if not form.pointwise and not (form.unit_stride and form.axes == 2):
        return "the compiled kernels take convolutions of two axes and stride 1, or of one tap without padding"
    return cpp.supports(dtype)


def _why_not_cuda(path: str, device: torch.device, dtype: torch.dtype, form: Form) -> str:
    cuda = importlib.import_module("weit_kernels.cuda")
    if path not in cuda.PATHS:
        return f"{path} has no CUDA kernels"
    if device.type != "cuda":
        return f"the CUDA kernels need a GPU, the tensors are on {device.type}"
    if reason := cuda.why_not():
        return reason
    if torch.cuda.is_available() and torch.cuda.get_device_capability(device) < (8, 0):
        return "the CUDA kernels need compute capability 8.0"
    if not form.pointwise:
        return "the CUDA kernels are matrix products: one tap, stride 1 and no padding; panel does other convolutions"
    return cuda.supports(dtype)


@cache
def _installed(name: str) -> bool:
    return importlib.util.find_spec(name) is not None


@cache
def _paths(backend: str) -> frozenset[str]:
    return frozenset(importlib.import_module(f"weit_kernels.{backend}").PATHS)


def require_runnable(
    path: str, backend: str, device: torch.device, dtype: torch.dtype, form: Form = LINEAR, *, swap: bool = False
) -> None:
    """Raise ``ValueError`` for unknown names and ``RuntimeError`` for a path or backend that cannot run.

    With ``swap`` the factors trade places before anything runs; the message still names paths as the caller does.
    """
    if path == "auto" and backend == "auto":
        return
    check_choice("path", path, PATH_NAMES)
    check_choice("backend", backend, BACKENDS)
    if reason := _why_nothing(path, backend, device, dtype, form, swap):
        raise RuntimeError(reason)


@torch.compiler.assume_constant_result  # imports and caches are not for tracing
def _why_nothing(path: str, backend: str, device: torch.device, dtype: torch.dtype, form: Form, swap: bool) -> str:
    """Why nothing of what is asked for can run; empty if something can."""
    reasons = {(p, b): why_not(exchanged(p) if swap else p, b, device, dtype, form) for p, b in pairs()}
    asked = [why for (p, b), why in reasons.items() if path in ("auto", p) and backend in ("auto", b)]
    if not all(asked):
        return ""
    able = ", ".join(f"{p} on {b}" for (p, b), why in reasons.items() if not why)
    run_as = exchanged(path) if swap else path
    stands = "" if run_as == path else f" (interleaved, so {run_as} with the factors exchanged)"
    return f"path={path!r}{stands} with backend={backend!r} cannot run: {asked[0]}; on {device.type} can run: {able}"
