"""``templates_first`` of both kinds in the emulator: dtype × ragged shapes × strides × order, against float64.

Devices before sm_90 run the kernel of ``mma.sync``; on sm_90 the one of ``wgmma`` runs where sizes and alignment suit it.
"""

import ctypes
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.weit_kernels.cases import CASES, RAGGED, Case, relative_error
from tests.weit_kernels.cuda import emulated
from tests.weit_kernels.cuda.emulated import Chain, Setting
from weit_kernels import reference

Kernels = Callable[[str], ctypes.CDLL]

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
THREADS = {"mma": 256, "wgmma": 384}  # of a block, which tell the kernels apart
AMPERE, HOPPER = Setting(major=8), Setting(major=9)
ORDERS = [(order, late) for order in (0, 1, 7) for late in (False, True)]

# Each tile of both tables. Several blocks on every axis, a k that ends within a stage, and edges that are not full.
TILES = [
    Case("eights_8", (70,), 8, 5, 3, 40, 72),
    Case("eights_16", (65,), 7, 12, 5, 32, 136),
    Case("eights_32", (33,), 13, 27, 4, 20, 40, cut_out=9),
    Case("eights_64", (35,), 5, 70, 2, 10, 24),
    Case("fours_8", (130,), 4, 8, 9, 38, 64),
    Case("fours_16", (64,), 3, 16, 6, 30, 32, cut_out=2),
    Case("fours_32", (40,), 2, 30, 4, 18, 200),
    Case("fours_64", (66,), 1, 65, 5, 12, 16),
    Case("sixteens_24", (67,), 18, 20, 3, 20, 48, cut_out=1),
    Case("sixteens_64", (20,), 20, 40, 2, 9, 72),
]
PLAIN = TILES[1]
# The same with a result whose rows can be stored as boxes.
BOXES = [replace(case, name=f"{case.name}_boxes", p=-(-case.p // 8) * 8, cut_out=0) for case in TILES]


def run(kernels: Kernels, operands: list[Tensor | None], case: Case, setting: Setting, kind: str) -> Tensor:
    """``y`` of one kernel, whose operands lie amid NaN."""
    x, T, S, bias = (None if t is None else emulated.guarded(t) for t in operands)
    assert x is not None
    assert T is not None
    assert S is not None
    rows = x.numel() // case.in_features
    y = emulated.unwritten(x, rows, case.out_features)
    sizes = (rows, case.N, case.m, case.n, case.p, case.q, case.in_features, case.out_features)
    pointers = (None if t is None else t.data_ptr() for t in (x, T, S, bias, y))
    job = Chain(emulated.ELEMENTS[x.dtype], *sizes, *pointers, *T.stride(), *S.stride())
    library = kernels("templates_first")
    assert emulated.call(library, "templates_first", job, setting) == 0
    assert rows == 0 or ctypes.c_uint.in_dll(library, "blockDim").value == THREADS[kind]
    emulated.assert_inside(x, T, S, y)
    return y.reshape(*x.shape[:-1], case.out_features)


def check(kernels: Kernels, operands: list[Tensor], case: Case, setting: Setting, kind: str) -> None:
    """The error against float64 is at most 1.5 times that of the dense product in the same dtype."""

    def dense(*inputs: Tensor) -> Tensor:
        return reference.kron_linear(*inputs, out_features=case.out_features, layout="block")

    truth = dense(*(t.double() for t in operands))
    bound = 1.5 * max(relative_error(dense(*operands), truth), torch.finfo(operands[0].dtype).eps)
    error = relative_error(run(kernels, list(operands), case, setting, kind), truth)
    assert error <= bound, f"error {error:.2e}, bound {bound:.2e}"


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES.keys())
@pytest.mark.parametrize("case", [*CASES, *TILES], ids=lambda case: case.name)
def test_mma_matches_the_reference(kernels: Kernels, case: Case, dtype: torch.dtype) -> None:
    check(kernels, case.operands(dtype), case, AMPERE, "mma")


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES.keys())
@pytest.mark.parametrize("case", TILES, ids=lambda case: case.name)
def test_wgmma_matches_the_reference(kernels: Kernels, case: Case, dtype: torch.dtype) -> None:
    check(kernels, case.operands(dtype), case, HOPPER, "wgmma")


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize("case", BOXES, ids=lambda case: case.name)
def test_results_leave_as_boxes(kernels: Kernels, case: Case, late: bool) -> None:
    kernels("templates_first").emulator_boxes_stored()
    setting = replace(HOPPER, processors=3, copies_late=late)
    check(kernels, case.operands(torch.bfloat16), case, setting, "wgmma")
    assert kernels("templates_first").emulator_boxes_stored() > 0


@pytest.mark.parametrize("kind", THREADS)
@pytest.mark.parametrize(("order", "late"), ORDERS)
def test_neither_order_nor_delays_change_a_number(kernels: Kernels, order: int, late: bool, kind: str) -> None:
    setting = HOPPER if kind == "wgmma" else AMPERE
    for case in (PLAIN, TILES[4]):
        operands: list[Tensor | None] = [*case.operands(torch.float16)]
        first = run(kernels, operands, case, setting, kind)
        assert torch.equal(run(kernels, operands, case, replace(setting, order=order, copies_late=late), kind), first)


@pytest.mark.parametrize("processors", [1, 3, 64])
def test_wgmma_with_any_number_of_processors(kernels: Kernels, processors: int) -> None:
    for case in (TILES[0], TILES[7]):  # one processor visits several places, of template rows and of scaler rows
        check(kernels, case.operands(torch.bfloat16), case, replace(HOPPER, processors=processors), "wgmma")


def transposed(t: Tensor) -> Tensor:
    return t.mT.contiguous().mT


def padded(t: Tensor) -> Tensor:
    """The same numbers in rows that are 8 longer."""
    return torch.cat([t, t.new_zeros(*t.shape[:-1], 8)], -1)[..., : t.shape[-1]]


@pytest.mark.parametrize(
    ("change", "kind"),
    [
        (lambda x, T, S, b: (x, T, transposed(S), b), "wgmma"),
        (lambda x, T, S, b: (x, padded(T), padded(S), b), "wgmma"),
        (lambda x, T, S, b: (x, T.transpose(0, 1).contiguous().transpose(0, 1), S, b), "wgmma"),
        (lambda x, T, S, b: (x, transposed(T), transposed(S), b), "mma"),
        (lambda x, T, S, b: (x, T[..., ::2].repeat_interleave(2, -1), S, b), "wgmma"),
    ],
)
def test_strides(kernels: Kernels, change: Callable, kind: str) -> None:
    operands = [*change(*PLAIN.operands(torch.bfloat16))]
    check(kernels, operands, PLAIN, AMPERE, "mma")
    check(kernels, operands, PLAIN, HOPPER, kind)


@pytest.mark.parametrize(
    "case",
    [
        RAGGED,
        replace(PLAIN, name="odd_q", q=20),
        replace(PLAIN, name="cut_in", cut_in=8),
        replace(PLAIN, name="odd_p", N=4, p=31),
        Case("templates_too_large", (8,), 100, 40, 1, 8, 264),
    ],
    ids=lambda case: case.name,
)
def test_mma_takes_on_sm90_what_wgmma_cannot(kernels: Kernels, case: Case) -> None:
    check(kernels, case.operands(torch.bfloat16), case, HOPPER, "mma")


@pytest.mark.parametrize("kind", THREADS)
def test_without_bias(kernels: Kernels, kind: str) -> None:
    x, T, S, bias = PLAIN.operands(torch.bfloat16)
    setting = HOPPER if kind == "wgmma" else AMPERE
    with_zeros = run(kernels, [x, T, S, torch.zeros_like(bias)], PLAIN, setting, kind)
    assert torch.equal(run(kernels, [x, T, S, None], PLAIN, setting, kind), with_zeros)


def test_what_is_refused(kernels: Kernels) -> None:
    x, T, S, bias = PLAIN.operands(torch.float32)
    job = Chain(emulated.ELEMENTS[torch.float32], 1, *[1] * 7, *(t.data_ptr() for t in (x, T, S, bias, x)), *[1] * 6)
    assert emulated.call(kernels("templates_first"), "templates_first", job, HOPPER) == emulated.NOT_SUPPORTED
    job.element, old = emulated.ELEMENTS[torch.float16], Setting(major=7, minor=5)
    assert emulated.call(kernels("templates_first"), "templates_first", job, old) == emulated.NOT_SUPPORTED


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("nvcc") is None, reason="no nvcc")
def test_nothing_makes_wgmma_wait(tmp_path: Path) -> None:
    cubin = tmp_path / "kernels.cubin"
    command = ["nvcc", "-std=c++17", "-O3", "-arch=sm_90a", "-Xptxas=-v", "-I", emulated.SOURCES, "-cubin", "-o", cubin]
    command.append(emulated.SOURCES / "templates_first_sm90.cu")
    said = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    assert said.count("bytes spill stores") == said.count(" 0 bytes spill stores, 0 bytes spill loads") > 0
    assert "wgmma.mma_async instructions are serialized" not in said
    if disassembler := shutil.which("cuobjdump"):
        code = subprocess.run([disassembler, "-sass", cubin], capture_output=True, text=True, check=True).stdout
        for kernel in code.split("Function :")[1:]:
            assert "HGMMA.64x" in kernel
