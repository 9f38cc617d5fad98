"""The kernels compile for sm_80, sm_90 and sm_100 without a GPU, and use the matrix units of each."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="Triton is not installed")

SHARED_BYTES = {80: 163 << 10, 90: 227 << 10, 100: 227 << 10}  # most that one program can have
UNITS = {80: "mma.sync", 90: "wgmma.mma_async", 100: "tcgen05.mma"}


@pytest.fixture(scope="module", params=["few", pytest.param("all", marks=pytest.mark.slow)])
def compiled(request: pytest.FixtureRequest) -> list[dict]:
    """In a process of its own: here the kernels may be interpreted."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    root = Path(__file__).parents[3]
    command = [sys.executable, "-m", "tests.weit_kernels.triton.compile_offline"]
    command += ["--all"] if request.param == "all" else []
    run = subprocess.run(command, env=environment, cwd=root, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr[-2000:]
    return [json.loads(line) for line in run.stdout.splitlines()]


@pytest.mark.timeout(1800)
def test_every_kernel_compiles_within_shared_memory(compiled: list[dict]) -> None:
    for unit in UNITS:
        names = {row["kernel"].partition(" ")[0] for row in compiled if row["capability"] == unit}
        assert names == {"templates_first", "scalers_first", "weight_grads", "on_the_fly", "synth", "sums", "pixels"}
    for row in compiled:
        assert row["shared"] <= SHARED_BYTES[row["capability"]], row


@pytest.mark.timeout(1800)
def test_16_bit_products_use_the_matrix_units(compiled: list[dict]) -> None:
    """The newest unit takes tiles of 64 rows or more; smaller ones, as in the weight's gradients, the older one."""
    for row in compiled:
        if row["dtype"] != "fp32" and row["kernel"] not in ("sums", "pixels"):  # which multiply nothing
            assert row["instructions"], row
            if row["kernel"].startswith(("templates_first", "scalers_first", "weight_grads")):
                assert UNITS[row["capability"]] in row["instructions"], row


@pytest.mark.timeout(1800)
def test_both_products_of_many_tokens_use_wgmma(compiled: list[dict]) -> None:
    """A product of fewer than 64 rows takes the older instruction, which must not show in the forward kernels."""
    rows = [
        row
        for row in compiled
        if row["capability"] == 90
        and row["dtype"] != "fp32"
        and row["kernel"].startswith(("templates_first", "scalers_first"))
        and row["warps"] == 8
    ]
    assert rows
    for row in rows:
        assert row["instructions"] == ["wgmma.mma_async"], row
        assert row["spilt"] == 0, row
