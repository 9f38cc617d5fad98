"""The emulator itself: it computes what a device would, and finds what a device would not forgive."""

import ctypes

import pytest
import torch

from tests.weit_kernels.cuda import emulated

ORDERS = (0, 1, 7)
TOYS = ["product", "neighbour", "no_barrier", "half_a_barrier", "outside", "divergent", "too_early"]


@pytest.fixture(scope="module")
def toys(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    if emulated.compiler() is None:
        pytest.skip("no C++ compiler")
    return emulated.build(tmp_path_factory.mktemp("toys"), "toys", emulated.EMULATOR / "toys.cu")


def run(toys: ctypes.CDLL, name: str, order: int, late: bool = True) -> tuple[str, torch.Tensor, torch.Tensor]:
    """The emulator's complaint, the toy's output and ``a @ b``."""
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(16, size, generator=generator).half() for size in (16, 8))
    out = torch.zeros(16, 8)
    toys.emulator_set(4, 9, 0, order, int(late))
    toys.emulated_toy(TOYS.index(name), *(ctypes.c_void_p(t.data_ptr()) for t in (out, a, b)))
    return toys.emulator_error().decode(), out, a.float() @ b.float()


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("late", [False, True])
def test_right_kernels(toys: ctypes.CDLL, order: int, late: bool) -> None:
    error, out, product = run(toys, "product", order, late)
    assert not error
    torch.testing.assert_close(out, product)
    error, out, _ = run(toys, "neighbour", order, late)
    assert not error
    assert out.flatten()[:96].tolist() == [(i + 1) % 96 for i in range(96)]


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("half_a_barrier", "waits for ever at a barrier"),
        ("outside", "outside the 64 bytes asked for"),
        ("divergent", "threads of one group are at"),
    ],
)
def test_what_would_hang_or_corrupt_is_reported(toys: ctypes.CDLL, name: str, message: str, order: int) -> None:
    assert message in run(toys, name, order)[0]


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("name", ["no_barrier", "too_early"])
def test_reading_what_is_not_there_yet_gives_nan(toys: ctypes.CDLL, name: str, order: int) -> None:
    assert run(toys, name, order)[1].isnan().any()
