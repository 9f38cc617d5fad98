"""The CUDA backend from Python down: ``weit_kernels/cuda.py`` and ``bindings_cuda.cpp`` above emulated kernels.

The bindings are compiled as they are, with the emulator's headers in place of CUDA's, and their kernels for CUDA tensors
are called with CPU tensors.
"""

import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils import cpp_extension

from tests.weit_kernels.cases import (
    CASES,
    DTYPES,
    RAGGED,
    Case,
    assert_as_good_as_dense,
    reference_linear,
)
from tests.weit_kernels.cuda import emulated
from tests.weit_kernels.triton.direct import operator
from weit_kernels import cuda
from weit_kernels.paths import PATHS

BINDINGS = emulated.ROOT / "csrc" / "bindings_cuda.cpp"
TORCH_INCLUDES = [flag for path in cpp_extension.include_paths() for flag in ("-isystem", path)]
NAMES = ("few_rows", "templates_first", "weight_grads")
SMALL = [case for case in CASES if case.lead and len(case.lead) == 1]


def cuda_includes() -> Path | None:
    """Where nvcc has CUDA's headers, or None."""
    if shutil.which("nvcc") is None:
        return None
    said = subprocess.run(
        ["nvcc", "--dryrun", "-x", "cu", "-E", "/dev/null"], capture_output=True, text=True, check=True
    )
    found = re.search(r'INCLUDES="-I([^"\s]+)', said.stderr)
    return Path(found[1]) if found else None


@pytest.mark.timeout(600)
@pytest.mark.slow
def test_bindings_compile_with_cuda_headers() -> None:
    includes = cuda_includes()
    if includes is None or emulated.compiler() is None:
        pytest.skip("no nvcc, so no CUDA headers, or no C++ compiler")
    command = [emulated.compiler(), "-std=c++20", "-fsyntax-only", "-Wall", "-Werror", *TORCH_INCLUDES]
    subprocess.run([*command, "-isystem", includes, "-I", BINDINGS.parent, BINDINGS], check=True)


@pytest.fixture(scope="module")
def backend(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """``weit_kernels.cuda`` on CPU tensors."""
    if emulated.compiler() is None:
        pytest.skip("no C++ compiler")
    if hasattr(torch.ops.weit_cuda, "few_rows"):
        pytest.skip("the extension has the real operators")
    folder = tmp_path_factory.mktemp("bindings")
    libraries = Path(torch.__file__).parent / "lib"
    library = emulated.build(
        folder, "bindings", BINDINGS, *sorted(emulated.SOURCES.glob("*.cu")),
        compile_flags=["-w", *TORCH_INCLUDES], link_flags=[f"-L{libraries}", "-ltorch_cpu", "-lc10"],
    )  # fmt: skip
    library.emulator_set(4, 9, 0, 1, 1)
    torch.ops.load_library(folder / "bindings.so")
    on_cuda = torch._C.DispatchKeySet(torch._C.DispatchKey.CUDA)
    registered = torch.library.Library("weit_cuda", "IMPL")
    for name in NAMES:
        op = getattr(torch.ops.weit_cuda, name).default
        registered.impl(name, lambda *args, op=op: op.redispatch(on_cuda, *args), "CPU")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cuda, "_stream", lambda x: 0)
        patch.setattr(cuda, "_other", lambda path, x: PATHS[path])
        yield cuda
    registered._destroy()


@pytest.fixture
def no_few_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda, "FEW_ROWS", 0)


@pytest.mark.parametrize("dtype", emulated.ELEMENTS, ids=["fp32", "fp16", "bf16"])
@pytest.mark.parametrize("case", SMALL, ids=lambda case: case.name)
def test_linear(backend, case: Case, dtype: torch.dtype) -> None:
    function = operator(backend.PATHS["templates_first"], case.out_features)
    slack = 3.0 if dtype == torch.float32 else 2.0  # gradients of float32 are plain torch's here, in its order of sums
    assert_as_good_as_dense(function, reference_linear(case, "block"), case.operands(dtype), slack)


@pytest.mark.usefixtures("no_few_rows")
@pytest.mark.parametrize("panels", [False, True])
@pytest.mark.parametrize("dtype", [DTYPES["bf16"], DTYPES["fp16"]], ids=["bf16", "fp16"])
@pytest.mark.parametrize("case", SMALL, ids=lambda case: case.name)
def test_many_rows(backend, case: Case, dtype: torch.dtype, panels: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backend, "_panels_are_faster", lambda *sizes: panels)
    function = operator(backend.PATHS["templates_first"], case.out_features)
    assert_as_good_as_dense(function, reference_linear(case, "block"), case.operands(dtype))


@pytest.mark.parametrize("need", [[True, False, False], [False, True, False], [False, False, True], [False] * 3])
def test_only_what_is_needed(backend, need: list[bool]) -> None:
    x, T, S, _ = RAGGED.operands(torch.bfloat16)
    dy = torch.randn(x.shape[0], RAGGED.out_features).bfloat16()
    assert [g is not None for g in backend.PATHS["templates_first"].linear_backward(dy, x, T, S, need)] == need


@pytest.mark.parametrize("one", ["N", "m", "n", "p", "q"])
@pytest.mark.parametrize("rows", [70, 0])
def test_gradients_lie_as_those_of_new_tensors(backend, rows: int, one: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backend, "_panels_are_faster", lambda *sizes: False)
    for m, n in ((4, 3), (3, 4)):  # either order of the kernel
        x, T, S, _ = Case("ones", (rows,), **({"N": 2, "m": m, "n": n, "p": 5, "q": 6} | {one: 1})).operands(
            DTYPES["bf16"]
        )
        T, S = (t.mT.contiguous().mT for t in (T, S))
        dy = torch.randn(rows, S.shape[1] * T.shape[1]).bfloat16()
        grads = backend.PATHS["templates_first"].linear_backward(dy, x, T, S, [True] * 3)
        assert [g.stride() for g in grads] == [torch.empty(t.shape).stride() for t in (x, T, S)]


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda x, T, S, b: (torch.cat([x, x], 1), T, S, b), ValueError, "x must have shape"),
        (lambda x, T, S, b: (x, T[0], S, b), ValueError, "templates must have shape"),
        (lambda x, T, S, b: (x, T, S[:1], b), ValueError, "scalers must have shape"),
        (lambda x, T, S, b: (x, T.half(), S, b), TypeError, "templates has dtype"),
        (lambda x, T, S, b: (x, T, S, b[:2]), ValueError, "bias must have shape"),
        (lambda x, T, S, b: (x.double(), T, S, b), TypeError, "x must be float32, float16 or bfloat16"),
    ],
)
def test_what_would_be_read_out_of_bounds_is_refused(backend, change, error: type[Exception], message: str) -> None:
    operands = change(*RAGGED.operands(torch.float32))
    for op in (torch.ops.weit_cuda.few_rows, torch.ops.weit_cuda.templates_first):
        with pytest.raises(error, match=message):
            op.default(*operands, RAGGED.out_features, 0)


def test_sizes_without_a_kernel_say_so(backend) -> None:
    with pytest.raises(NotImplementedError, match=r"templates_first has no CUDA kernel .*'triton' or 'torch'"):
        torch.ops.weit_cuda.templates_first.default(*RAGGED.operands(torch.float32), RAGGED.out_features, 0)
