"""Fixtures for the tests of the compiled kernels."""

from collections.abc import Callable, Iterator

import pytest
import torch


@pytest.fixture
def threads() -> Iterator[None]:
    """Lets a test change the number of threads and ask for determinism; both are as before after it."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)
    torch.use_deterministic_algorithms(False)


@pytest.fixture
def instruction_sets() -> Iterator[Callable[[], Iterator[str]]]:
    """Makes one instruction set of this machine after another the one in use; the best comes back after the test."""
    from weit_kernels import _C

    best = _C.instruction_set()

    def each() -> Iterator[str]:
        for name in _C.instruction_sets():
            _C.use_instruction_set(name)
            assert _C.instruction_set() == name
            yield name

    yield each
    _C.use_instruction_set(best)
