"""What comes before the first test: threads, hypothesis, torchvision beside a CPU-only torch, GPU skips."""

import os

# Workers share the cores: one thread each, and in the processes they start. torch reads this on import.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# cuBLAS refuses torch's deterministic mode, which some tests switch on, without it.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")

import hypothesis
import pytest
import torch

from benchmarks.torchvision_operators import declare

# Without a GPU Triton's kernels run in its interpreter, which must be chosen before anything imports Triton.
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"

torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))

# The same examples in every run, and no verdict that depends on how busy the machine is.
# `pytest --hypothesis-profile=explore` looks further, with new examples each time.
hypothesis.settings.register_profile("weit", derandomize=True, deadline=None, max_examples=50)
hypothesis.settings.register_profile("explore", deadline=None, max_examples=1000)
hypothesis.settings.load_profile("weit")


declare()


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("gpu") and not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")


@pytest.hookimpl(trylast=True)
def pytest_runtest_teardown(item: pytest.Item) -> None:
    """An error that a kernel left with the device fails all that follows: a parallel worker makes way for a new one."""
    if not torch.cuda.is_initialized():
        return
    try:
        torch.cuda.synchronize()
    except Exception:
        if "PYTEST_XDIST_WORKER" in os.environ:
            os._exit(1)
        raise
