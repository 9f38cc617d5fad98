"""Channels of maps put last and first again, exactly as torch does it, and what convolutions of one tap make of it."""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton", reason="Triton is not installed")

from tests.weit_kernels.cases import assert_as_good_as_dense
from tests.weit_kernels.triton.direct import DEVICE, operator, poisoned
from weit_kernels import backends, cuda, reference
from weit_kernels.estimates import Request, _copied
from weit_kernels.paths import pointwise
from weit_kernels.paths.convolution import ConvArgs
from weit_kernels.shapes import KronShape
from weit_kernels.triton import panel, pixels


@pytest.fixture(autouse=True)
def poisoned_memory() -> Iterator[None]:
    with poisoned():
        yield


def random(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape))).to(dtype).to(DEVICE)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize(
    "shape",
    [
        (1, 1, 1),
        (1, 70, 5),
        (3, 64, 64),
        (2, 65, 11, 13),
        (2, 3, 5, 4, 7),
        (0, 3, 4),
        (2, 3, 0),
        (3, 70, 1, 1),
        (3, 1, 5, 5),
    ],
)
def test_they_are_torchs_copies(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    maps = random(*shape, dtype=dtype)
    rows = pixels.rows_of(maps)
    assert rows.is_contiguous()
    assert torch.equal(rows, pointwise.rows_of(maps))
    back = pixels.maps_of(rows, maps)
    assert back.is_contiguous()
    assert torch.equal(back, maps)


@pytest.mark.parametrize("shape", [(3, 70, 1, 1), (3, 1, 5, 5)])
def test_single_pixels_and_channels_are_not_copied(shape: tuple[int, ...]) -> None:
    maps = random(*shape)
    assert pixels.rows_of(maps).data_ptr() == maps.data_ptr()
    assert pixels.maps_of(pixels.rows_of(maps), maps).data_ptr() == maps.data_ptr()


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize(
    ("dtype", "size", "copies"),
    [(torch.float32, (3, 3), 5), (torch.bfloat16, (7, 2), 5), (torch.bfloat16, (4, 2), 0), (torch.bfloat16, (1, 1), 5)],
)
def test_panels_put_channels_last_where_maps_are_out_of_step(
    dtype: torch.dtype, size: tuple[int, int], copies: int, batch: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once for ``x`` and ``y`` each, and for ``dy``, ``x`` and ``dx``."""
    made, swap = [], pixels._swap
    monkeypatch.setattr(pixels, "_swap", lambda *args: made.append(args) or swap(*args))
    operands = [random(*shape, dtype=dtype) for shape in ((batch, 11, *size), (3, 5, 6, 1, 1), (3, 4, 2), (18,))]
    x, T, S, b = operands
    y = panel.conv(x, T, S, b, 18, ConvArgs.plain(2))
    panel.conv_backward(torch.ones_like(y), x, T, S, [True] * 3, ConvArgs.plain(2))
    assert len(made) == copies

    def dense(x: Tensor, T: Tensor, S: Tensor, b: Tensor) -> Tensor:
        return reference.kron_conv(x, T, S, b, out_channels=18)

    assert_as_good_as_dense(operator(panel, 18, conv=ConvArgs.plain(2)), dense, operands, slack=1.5)


@pytest.mark.parametrize("missing", ["", "triton is not installed"])
def test_compiled_kernels_do_without_triton(missing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backends, "why_not", lambda *args: missing)
    cuda._swaps.cache_clear()
    maps = random(2, 5, 3, 3)
    assert torch.equal(cuda._maps_of(cuda._rows_of(maps), maps), maps)
    assert cuda._swaps(DEVICE) is (pointwise if missing else pixels)
    cuda._swaps.cache_clear()


def test_copies_are_counted() -> None:
    shape = KronShape(3, 3, 2, 6, 6, 18, 11, kernel=(1, 1))

    def bytes_of(size: tuple[int, int], backend: str, last: bool = False) -> list[int]:
        request = Request(shape, 2 * 49, torch.bfloat16, torch.device("cpu"), True, "panel", backend,
                          ConvArgs.plain(2), size, last)  # fmt: skip
        return [_copied(request, "panel", backend, phase) for phase in ("forward", "backward")]

    assert bytes_of((7, 7), "triton") == [2 * 98 * (11 + 18), 2 * 98 * (2 * 11 + 18)]
    assert bytes_of((7, 8), "triton") == [0, 0]
    assert bytes_of((7, 7), "torch") == bytes_of((7, 7), "triton", last=True) == [0, 0]
