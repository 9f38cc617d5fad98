"""Bytes that a module takes in training, measured: its state, what it saves for the backward pass, the peak of a step."""

from __future__ import annotations

import gc
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from weit.predict import saved_bytes


@dataclass(frozen=True)
class Memory:
    """Bytes of one training setup.

    Attributes:
        parameters, gradients: of all parameters, shared ones once.
        optimiser: AdamW's two moments.
        saved: all storages that the forward pass keeps for the backward pass, each once, without parameters.
        peak: the most that is allocated at a time in a step that starts without gradients, its inputs not counted;
            ``None`` where the step did not run.
    """

    parameters: int
    gradients: int
    optimiser: int
    saved: int
    peak: int | None = None

    def rows(self) -> dict[str, int | None]:
        """Name → bytes."""
        return dict(vars(self))


Loss = Callable[[], Tensor]


def measure(module: nn.Module, loss: Loss, foreach: bool | None = None) -> Memory:
    """Run AdamW steps of ``loss``, a function that calls ``module`` and returns a scalar, and count.

    ``foreach``: as ``torch.optim.AdamW`` takes it; by default all parameters at a time on a GPU, one by one on a CPU.

    The step that is measured runs in a fresh thread, since the CPU workspace of the operator is kept by thread: so
    it counts.
    """
    optimizer = torch.optim.AdamW(module.parameters(), foreach=foreach)

    def step() -> None:
        loss().backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    step()
    state = [t for s in optimizer.state.values() for t in s.values() if t.dim()]
    parameters, optimiser = _bytes([*module.parameters()]), _bytes(state)
    saved = saved_bytes(module, loss)
    gc.collect()
    device = next(module.parameters()).device
    above = _peak_cuda(step) if device.type == "cuda" else _in_fresh_thread(step)
    return Memory(parameters, parameters, optimiser, saved, parameters + optimiser + above)


def _bytes(tensors: list[Tensor]) -> int:
    return sum(t.numel() * t.element_size() for t in tensors)


def _in_fresh_thread(step: Callable[[], None]) -> int:
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(_peak_cpu, step).result()


def _peak_cpu(step: Callable[[], None]) -> int:
    """The most that the CPU allocator hands out above the start, from the profiler's memory records."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as found:
        step()
    assert found.profiler is not None
    events = [e for e in found.profiler.kineto_results.events() if e.name() == "[memory]"]
    total = peak = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        total += event.nbytes()
        peak = max(peak, total)
    return peak


def _peak_cuda(step: Callable[[], None]) -> int:
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    step()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before
