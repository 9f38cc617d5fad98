"""The CUDA kernels built by a C++ compiler with the emulator's headers, and called on CPU tensors."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

ROOT = Path(__file__).parents[3]
EMULATOR = Path(__file__).parent / "emulator"
SOURCES = ROOT / "csrc" / "cuda"
ELEMENTS = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2}
INVALID_VALUE, NOT_SUPPORTED = 1, 801
MARGIN = 4096  # numbers around an operand that no kernel may read or write: NaN, so that either shows


def compiler() -> str | None:
    """A C++ compiler that has the emulator's float16, or None."""
    return shutil.which("g++")


def build(folder: Path, name: str, *sources: Path, compile_flags: Any = (), link_flags: Any = ()) -> ctypes.CDLL:
    """A library of the emulator and some sources."""
    objects = []
    for source in (EMULATOR / "core.cpp", EMULATOR / "calls.cpp", *sources):
        objects.append(folder / f"{name}.{source.name}.o")
        command = [compiler(), "-std=c++20", "-O1", "-fPIC", "-Wall", "-Wno-unknown-pragmas", "-U_FORTIFY_SOURCE"]
        command += ["-I", EMULATOR, "-I", SOURCES, *compile_flags, "-x", "c++", "-c", source, "-o", objects[-1]]
        run = subprocess.run(command, capture_output=True, text=True, check=False)
        assert run.returncode == 0, run.stderr[-4000:]
    file = folder / f"{name}.so"
    subprocess.run([compiler(), "-shared", *objects, *link_flags, "-o", file], check=True)
    library = ctypes.CDLL(str(file))
    library.emulator_error.restype = ctypes.c_char_p
    library.emulated_weight_grads_splits.restype = Splits
    return library


def _fields(text: str) -> list[tuple[str, Any]]:
    """``"int64: M N, pointer: x"`` as the fields of a structure."""
    types = {
        "int": ctypes.c_int, "int64": ctypes.c_int64, "pointer": ctypes.c_void_p, "bool": ctypes.c_bool,
    }  # fmt: skip
    groups = (group.split(":") for group in text.split(","))
    return [(name, types[kind.strip()]) for kind, names in groups for name in names.split()]


class Chain(ctypes.Structure):
    """``Chain`` of ``kernels.h``, and the others likewise."""

    _fields_ = _fields(
        "int: element, int64: M N m n p q inn out, pointer: x T S bias y, int64: T_t T_a T_k S_t S_i S_j"
    )


class Splits(ctypes.Structure):
    _fields_ = _fields("int64: dT dS")


class WeightGrads(ctypes.Structure):
    _fields_ = [
        *_fields("int: element, int64: M N m n p q inn out, pointer: dy x T S dT dS, int64: T_t T_a T_k S_t S_i S_j"),
        ("splits", Splits),
    ]


@dataclass(frozen=True)
class Setting:
    """A pretended device, the order of its blocks and threads, and when copies in the background arrive."""

    major: int = 9
    minor: int = 0
    order: int = 0
    copies_late: bool = True
    processors: int = 4


def call(library: ctypes.CDLL, name: str, job: ctypes.Structure, setting: Setting) -> int:
    """Run one kernel; the error it returns, unless the emulator found fault with it."""
    library.emulator_set(setting.processors, setting.major, setting.minor, setting.order, int(setting.copies_late))
    code = getattr(library, f"emulated_{name}")(ctypes.byref(job))
    assert not library.emulator_error(), library.emulator_error().decode()
    return code


def guarded(operand: Tensor) -> Tensor:
    """A copy with the same strides amid NaN."""
    span = 1 + sum((size - 1) * stride for size, stride in zip(operand.shape, operand.stride(), strict=True))
    memory = torch.full((span + 2 * MARGIN,), float("nan"), dtype=operand.dtype)
    return memory.as_strided(operand.shape, operand.stride(), MARGIN).copy_(operand)


def unwritten(like: Tensor, *shape: int, dtype: torch.dtype | None = None) -> Tensor:
    """NaN amid NaN, contiguous."""
    return guarded(torch.full(shape, float("nan"), dtype=dtype or like.dtype))


def assert_inside(*operands: Tensor) -> None:
    """Nothing was written around them."""
    for operand in operands:
        memory = torch.empty(0, dtype=operand.dtype).set_(operand.untyped_storage())
        assert memory[:MARGIN].isnan().all()
        assert memory[-MARGIN:].isnan().all()
