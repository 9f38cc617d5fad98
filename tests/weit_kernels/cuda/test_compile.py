"""The CUDA sources compile for every GPU they are made for, without spills, and use the matrix units."""

import shutil

import pytest

from tests.weit_kernels.cuda.compile_offline import ARCHITECTURES, SOURCES, rows

FEW = ("sm_90a", SOURCES / "few_rows.cu", SOURCES / "weight_grads.cu")
MOST_SPILT = 0  # bytes a thread


@pytest.fixture(
    scope="module", params=[FEW, *[pytest.param((name,), marks=pytest.mark.slow) for name in ARCHITECTURES]]
)
def compiled(request: pytest.FixtureRequest) -> list[dict]:
    if shutil.which("nvcc") is None:
        pytest.skip("no nvcc")
    return list(rows(*request.param))


@pytest.mark.timeout(1800)
def test_nothing_spills(compiled: list[dict]) -> None:
    assert {"few_rows.cu", "weight_grads.cu"} <= {row["source"] for row in compiled}
    for row in compiled:
        assert row["spilt"] <= MOST_SPILT, row
        assert row["stack"] == 0, row  # an array that is indexed where no register can be


@pytest.mark.timeout(1800)
def test_16_bit_products_use_the_matrix_units(compiled: list[dict]) -> None:
    for row in compiled:
        if row["source"] in ("few_rows.cu", "weight_grads.cu", "templates_first.cu") and "<float" not in row["kernel"]:
            assert "mma.sync" in " ".join(row["instructions"]), row


@pytest.mark.timeout(1800)
def test_kernels_of_sm_90a_are_for_it_alone(compiled: list[dict]) -> None:
    for row in compiled:
        if row["source"].endswith("_sm90.cu"):
            assert ("wgmma" in " ".join(row["instructions"])) == (row["architecture"] == "sm_90a"), row
