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


@pytest.fixture(scope="module")
def compiled() -> list[dict]:
    """In a process of its own: here the kernels may be interpreted."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    root = Path(__file__).parents[3]
    command = [sys.executable, "-m", "tests.weit_kernels.triton.compile_offline"]
    run = subprocess.run(command, env=environment, cwd=root, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr[-2000:]
    return [json.loads(line) for line in run.stdout.splitlines()]


def test_every_kernel_compiles_within_shared_memory(compiled: list[dict]) -> None:
    assert {(row["path"], row["capability"]) for row in compiled} == {
        (path, capability) for path in ("templates_first", "scalers_first") for capability in UNITS
    }
    for row in compiled:
        assert row["shared"] <= SHARED_BYTES[row["capability"]], row


def test_16_bit_products_use_the_matrix_units(compiled: list[dict]) -> None:
    for row in compiled:
        if row["dtype"] != "fp32":
            assert row["instructions"] == [UNITS[row["capability"]]], row
