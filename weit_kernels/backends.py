"""Which path runs on which backend, why not the others, and the module that does it."""

from __future__ import annotations

import importlib.util
import os
from functools import cache
from types import ModuleType

import torch

from weit_kernels.paths import PATHS
from weit_kernels.shapes import BACKENDS, check_choice
from weit_kernels.shapes import PATHS as PATH_NAMES


def module(path: str, backend: str) -> ModuleType:
    """The module that computes ``path`` on ``backend``."""
    if backend == "triton":
        from weit_kernels import triton

        return triton.PATHS[path]
    return PATHS[path]


def why_not(
    path: str,
    backend: str,
    device_type: str,
    dtype: torch.dtype | None = None,
    *,
    kernel: tuple[int, ...] = (),
    groups: int = 1,
    auto: bool = False,
) -> str:
    """Why a path cannot run on a backend, or why ``"auto"`` does not consider it; empty if there is no reason."""
    if backend in ("cpp", "cuda"):
        return f"no {backend} kernels are built into this version"
    if path == "on_the_fly":
        return "synthesising weight tiles inside the product needs a kernel that is not written yet"
    if groups > 1 and path != "panel":
        return f"groups={groups}: rows of the weight meet different inputs, which only panel handles"
    return _why_not_triton(path, device_type, dtype, kernel, auto) if backend == "triton" else ""


def _why_not_triton(path: str, device_type: str, dtype: torch.dtype | None, kernel: tuple[int, ...], auto: bool) -> str:
    if path == "panel":
        return "the panel is a library product: use backend='torch'"
    if kernel:
        return "Triton kernels are for linear layers only so far"
    if dtype == torch.float64:
        return "Triton kernels sum in float32, which is too little for float64"
    if not _installed("triton"):
        return "triton is not installed"
    if device_type != "cuda" and os.environ.get("TRITON_INTERPRET") != "1":
        return f"Triton needs a GPU (or TRITON_INTERPRET=1), the tensors are on {device_type}"
    return "never timed on a GPU: ask for backend='triton' to use it" if auto else ""


@cache
def _installed(name: str) -> bool:
    return importlib.util.find_spec(name) is not None


def require_runnable(
    path: str,
    backend: str,
    device_type: str,
    dtype: torch.dtype | None = None,
    *,
    kernel: tuple[int, ...] = (),
    groups: int = 1,
) -> None:
    """Raise ``ValueError`` for unknown names and ``RuntimeError`` for a path or backend that cannot run."""
    check_choice("path", path, PATH_NAMES)
    check_choice("backend", backend, BACKENDS)
    if path == "auto" and backend == "auto":
        return
    reasons = {
        (p, b): why_not(p, b, device_type, dtype, kernel=kernel, groups=groups)
        for p in PATH_NAMES[1:]
        for b in BACKENDS[1:]
    }
    asked = [why for (p, b), why in reasons.items() if path in ("auto", p) and backend in ("auto", b)]
    if all(asked):
        able = ", ".join(f"{p} on {b}" for (p, b), why in reasons.items() if not why)
        raise RuntimeError(
            f"path={path!r} with backend={backend!r} cannot run: {asked[0]}; on {device_type} can run: {able}"
        )
