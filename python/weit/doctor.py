"""Examines the machine: versions, compilers, GPU, kernels, extras, data."""

from __future__ import annotations

import importlib
import importlib.metadata
import os
import platform
import shutil
import subprocess
from collections.abc import Sequence

import torch

import weit_kernels
from weit.tasks.classification import find_fashion_mnist
from weit_kernels import cpp
from weit_kernels.shapes import BACKENDS

_EXTRAS = {
    "demo": ["scikit-learn"],
    "timm": ["timm"],
    "images": ["torchvision", "datasets"],
    "transformers": ["transformers"],
    "generation": ["diffusers"],
    "control": ["gymnasium", "mujoco", "stable-baselines3"],
    "bench": [
        "pytest-benchmark",
        "peft",
        "lycoris-lora",
        "pyfastkron",
        "tensorly-torch",
        "opt_einsum",
        "linear_operator",
    ],
    "test": ["pytest", "hypothesis"],
}
_SHAPE = (8, 16, 16), (32, 32)  # scalers and templates of a middling layer, to ask each backend about


def examine() -> dict[str, dict[str, str]]:
    """Section -> what was looked at -> what was found, in words."""
    return {
        "Python and libraries": _libraries(),
        "Compilers": {name: _first_line([name, "--version"]) for name in ("c++", "ninja", "nvcc")},
        "Accelerators": _accelerators(),
        "weit_kernels": _kernels(),
        "Extras": {extra: _installed(packages) + _trouble(extra) for extra, packages in _EXTRAS.items()},
        "Data sets": _data(),
    }


def _libraries() -> dict[str, str]:
    names = ("triton", "accelerate", "safetensors", "numpy")
    return {
        "python": f"{platform.python_version()} on {platform.platform()}, {os.cpu_count()} cores",
        "weit": weit_kernels.__version__,
        "torch": torch.__version__,  # which names its CUDA too
        **{name: _version(name) or "not installed" for name in names},
    }


def _accelerators() -> dict[str, str]:
    if not torch.cuda.is_available():
        built = f"torch is built for CUDA {torch.version.cuda}" if torch.version.cuda else "torch is built without CUDA"
        return {"GPU": f"none ({built})"}
    return {
        f"GPU {i}": f"{p.name}, {p.total_memory / 2**30:.0f} GiB, compute capability {p.major}.{p.minor}"
        for i, p in enumerate(map(torch.cuda.get_device_properties, range(torch.cuda.device_count())))
    }


def _kernels() -> dict[str, str]:
    lines = {"extension": _extension()}
    devices = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
    for device in devices:
        for backend in BACKENDS:
            if backend != "auto":
                lines[f"{backend} on {device}"] = _backend(backend, device)
    return lines


def _extension() -> str:
    if reason := cpp.why_not():
        return f"no: {reason}; plain torch does everything"
    return f"built, kernels for {importlib.import_module('weit_kernels._C').instruction_set()}"


def _backend(backend: str, device: str) -> str:
    try:
        chosen = weit_kernels.plan(1024, *_SHAPE, torch.float32, device, backend=backend)
    except RuntimeError as error:
        reason = str(error).partition("cannot run: ")[2].partition(";")[0]
        return f"no: {reason or error}"
    return f"yes ({chosen.path} for a 512 x 512 layer and 1024 rows)"


def _data() -> dict[str, str]:
    digits = "in scikit-learn" if _version("scikit-learn") else "needs scikit-learn: pip install .[demo]"
    try:
        fashion = str(find_fashion_mnist())
    except FileNotFoundError as error:
        fashion = str(error)
    return {"digits": digits, "fashion-mnist": fashion}


def _installed(packages: Sequence[str]) -> str:
    return ", ".join(f"{name} {_version(name) or 'missing'}" for name in packages)


def _trouble(extra: str) -> str:
    """Why timm, which comes with a torchvision that may be built for another torch, does not import."""
    if extra != "timm" or _version("timm") is None:
        return ""
    try:
        importlib.import_module("timm")
    except Exception as error:  # torchvision raises what its operators raise
        return f", which does not import: {error}; torchvision must be built for this torch"
    return ""


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _first_line(command: list[str]) -> str:
    if shutil.which(command[0]) is None:
        return "not found"
    try:
        found = subprocess.run(command, capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"does not run: {error}"
    lines = [line for line in (found.stdout or found.stderr).splitlines() if line.strip()]
    release = [line for line in lines if "release" in line]  # nvcc says it in the fourth line
    return (release or lines or ["says nothing"])[0]
