"""Interleaved rounds on a GPU (CUDA events) or a CPU (``perf_counter``), and CUDA graphs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from time import perf_counter
from typing import TypeVar

import torch

from weit_kernels.tune import keep_busy

Step = Callable[[], object]
T = TypeVar("T")


class ContenderError(RuntimeError):
    """A step raised while it was timed; ``contender`` says which."""

    def __init__(self, contender: str, error: Exception) -> None:
        super().__init__(describe(error))
        self.contender = contender


def describe(error: BaseException) -> str:
    """Type and message on one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


class CpuClock:
    """Wall time of calls."""

    def round(self, steps: dict[str, Step], repeats: int) -> dict[str, float]:
        """Seconds a call of each step, ``repeats`` calls back to back."""
        seconds = {}
        for name, step in steps.items():
            try:
                start = perf_counter()
                for _ in range(repeats):
                    step()
                seconds[name] = (perf_counter() - start) / repeats
            except Exception as error:
                raise ContenderError(name, error) from error
        return seconds


class CudaClock:
    """Time between two CUDA events on the current stream.

    With ``flush`` every sample starts after a buffer twice the size of the L2 cache has been overwritten: operands come
    from device memory. Without, operands that fit stay in the cache. With ``ahead`` the device is kept busy until the
    host has launched the step, as it is inside a model: what counts is the device's time alone. Without, every sample
    starts on an idle device, and a step whose launches take longer than its kernels takes as long as its launches.
    """

    def __init__(self, flush: bool, ahead: bool = True) -> None:
        self._launch: dict[str, float] | None = {} if ahead else None  # seconds that the host takes for each step
        l2 = getattr(torch.cuda.get_device_properties(0), "L2_cache_size", 0) or 64 << 20
        self._buffer = torch.empty(2 * l2, dtype=torch.uint8, device="cuda") if flush else None

    def round(self, steps: dict[str, Step], repeats: int) -> dict[str, float]:
        """Seconds a call of each step, ``repeats`` calls back to back; with ``ahead`` the host waits once, at the end."""
        events = {}
        for name, step in steps.items():
            start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            try:
                if self._launch is None:
                    torch.cuda.synchronize()  # or launches would hide behind what the step before has queued
                else:
                    keep_busy(min(0.05, 2 * self._launch.get(name, 5e-3)))  # a queue that is full must not fill more
                if self._buffer is not None:
                    self._buffer.zero_()
                began = perf_counter()
                start.record()
                for _ in range(repeats):
                    step()
                end.record()
                if self._launch is not None:
                    self._launch[name] = perf_counter() - began
            except Exception as error:
                raise ContenderError(name, error) from error
            events[name] = start, end
        torch.cuda.synchronize()
        return {name: start.elapsed_time(end) / 1e3 / repeats for name, (start, end) in events.items()}


def interleaved(
    steps: dict[str, Step], clock: CpuClock | CudaClock, seconds: float, least: int = 7, repeats: int = 1
) -> dict[str, list[float]]:
    """Samples of every step, all of them in turn for about ``seconds`` and ``least`` rounds; two rounds warm up.

    Every other round goes backwards, so that no step always follows the same one.
    """
    for _ in range(2):
        clock.round(steps, 1)
    samples: dict[str, list[float]] = {name: [] for name in steps}
    forwards, backwards = steps, dict(reversed(steps.items()))
    end, rounds = perf_counter() + seconds, 0
    while rounds < least or perf_counter() < end:
        for name, value in clock.round(backwards if rounds % 2 else forwards, repeats).items():
            samples[name].append(value)
        rounds += 1
    return samples


def spread(samples: Sequence[float]) -> dict[str, float | int]:
    """Median, 10th and 90th percentile and the number of samples."""
    ordered = sorted(samples)

    def percentile(share: float) -> float:
        position = share * (len(ordered) - 1)
        below = int(position)
        above = min(below + 1, len(ordered) - 1)
        return ordered[below] + (position - below) * (ordered[above] - ordered[below])

    return {"seconds": percentile(0.5), "p10": percentile(0.1), "p90": percentile(0.9), "rounds": len(ordered)}


def captured(step: Callable[[], T]) -> Callable[[], T]:
    """The step as a CUDA graph: warmed up on a side stream, captured once, replayed by each call."""
    if not torch.cuda.is_available():
        raise RuntimeError("CUDA graphs need a GPU")
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        outputs = step()

    def replay(operands: object = step) -> T:  # the graph reads what the step holds, the layer's weight above all
        graph.replay()
        return outputs

    return replay
