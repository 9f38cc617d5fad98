"""Libraries of emulated kernels, each built once."""

import ctypes
from collections.abc import Callable
from functools import cache

import pytest

from tests.weit_kernels.cuda import emulated


@pytest.fixture(scope="session")
def kernels(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], ctypes.CDLL]:
    """``kernels("few_rows")``: the library of ``csrc/cuda/few_rows*.cu``."""
    if emulated.compiler() is None:
        pytest.skip("no C++ compiler")
    folder = tmp_path_factory.mktemp("kernels")

    @cache
    def library(name: str) -> ctypes.CDLL:
        return emulated.build(folder, name, *sorted(emulated.SOURCES.glob(f"{name}*.cu")))

    return library
