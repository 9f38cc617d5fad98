"""Channels of maps put last and first again, exactly as torch does it, and what convolutions of one tap make of it."""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton", reason="Triton is not installed")

from tests.weit_kernels.cases import assert_as_good_as_dense
from tests.weit_kernels.triton.direct import DEVICE, operator, poisoned
from weit_kernels import reference
from weit_kernels.paths import pointwise
from weit_kernels.paths.convolution import ConvArgs
from weit_kernels.triton import panel, pixels


@pytest.fixture(autouse=True)
def poisoned_memory() -> Iterator[None]:
    with poisoned():
        yield


def random(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape))).to(dtype).to(DEVICE)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize(
    "shape", [(1, 1, 1), (1, 70, 5), (3, 64, 64), (2, 65, 11, 13), (2, 3, 5, 4, 7), (0, 3, 4), (2, 3, 0)]
)
def test_they_are_torchs_copies(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    maps = random(*shape, dtype=dtype)
    rows = pixels.pixels(maps)
    assert rows.is_contiguous()
    assert torch.equal(rows, pointwise.pixels(maps))
    back = pixels.maps(rows, maps)
    assert back.is_contiguous()
    assert torch.equal(back, maps)


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize(
    ("dtype", "size"), [(torch.float32, (3, 3)), (torch.bfloat16, (14, 14)), (torch.bfloat16, (4, 2))]
)
def test_panels_of_pointwise_convolutions(dtype: torch.dtype, size: tuple[int, int], batch: int) -> None:
    """Rows of maps 16 bytes apart, which the library multiplies as they are, and others."""
    operands = [random(*shape, dtype=dtype) for shape in ((batch, 11, *size), (3, 5, 6, 1, 1), (3, 4, 2), (18,))]
    assert panel._by_pixels(operands[0], operands[1], ConvArgs.plain(2)) == (size != (4, 2))

    def dense(x: Tensor, T: Tensor, S: Tensor, b: Tensor) -> Tensor:
        return reference.kron_conv(x, T, S, b, out_channels=18)

    assert_as_good_as_dense(operator(panel, 18, conv=ConvArgs.plain(2)), dense, operands, slack=1.5)
