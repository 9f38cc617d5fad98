"""Timing of candidates: which may run, which agree with the plain path, which is the fastest.

``WEIT_TUNE`` says how much is timed: ``0`` nothing, ``1`` (the default) the four candidates that the cost model likes
most, ``full`` all that can run.
"""

from __future__ import annotations

import functools
import os
import statistics
import warnings
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from time import perf_counter

import torch
from torch import Tensor

from weit_kernels import timings
from weit_kernels._version import __version__
from weit_kernels.shapes import check_choice

MODES = ("0", "1", "full")
ROUNDS = 9
Results = Sequence[Tensor | None]


def mode() -> str:
    """``WEIT_TUNE``: ``"0"``, ``"1"`` or ``"full"``; ``ValueError`` for anything else."""
    value = os.environ.get("WEIT_TUNE") or "1"
    check_choice("WEIT_TUNE", value, MODES)
    return value


def may_time(device: torch.device) -> bool:
    """Whether candidates may be run and timed on a device, now: a GPU, outside of tracing and capture.

    Nor inside of a dispatch mode, which might make tensors without numbers. A mode that sees one operator is left while
    that runs, so that a first call under a counter of operations is timed as any other.
    """
    return (
        device.type == "cuda"
        and mode() != "0"
        and torch.cuda.is_available()
        and not torch.compiler.is_compiling()
        and torch._C._len_torch_dispatch_stack() == 0
        and not torch.cuda.is_current_stream_capturing()
    )


def allows_tf32() -> bool:
    """Whether torch multiplies float32 as tf32; the older switch cannot be read once the newer was used."""
    return torch.backends.cuda.matmul.fp32_precision == "tf32"


def key(kind: str, device: torch.device, *parts: object) -> str:
    """A key of the cache: what was tuned, the device and the versions it was tuned with, then the caller's parts."""
    return " | ".join([kind, device_name(device), *_versions(), *map(str, parts)])


def device_name(device: torch.device) -> str:
    """What the device calls itself, without an index the current one; its type where torch cannot ask it."""
    if device.type == "cuda" and torch.cuda.is_available():
        return _gpu_name(torch.cuda.current_device() if device.index is None else device.index)
    return device.type


@functools.cache
def _gpu_name(index: int) -> str:
    return torch.cuda.get_device_name(index)


@functools.cache
def _versions() -> tuple[str, ...]:
    try:
        triton = version("triton")
    except PackageNotFoundError:
        triton = "missing"
    return f"torch {torch.__version__}", f"triton {triton}", f"weit {__version__}"


def bucket(rows: int) -> int:
    """Rows up to the next power of two share their tuning."""
    return 1 << max(0, rows - 1).bit_length()


def fastest(
    candidates: Mapping[str, Callable[[], object]],
    timer: Callable[[Callable[[], object]], float],
    rounds: int = ROUNDS,
) -> tuple[str, dict[str, float]]:
    """Name of the candidate with the least median time, and all the medians.

    The candidates take turns, so that a change of clocks hits all alike; each runs once untimed first. One that raises
    is dropped with a warning that names it.

    Raises:
        RuntimeError: no candidate ran.
    """
    times: dict[str, list[float]] = {name: [] for name in candidates}
    for taken in range(rounds + 1):
        for name in list(times):
            try:
                if taken == 0:
                    candidates[name]()
                else:
                    times[name].append(timer(candidates[name]))
            except Exception as error:  # whatever a compiler, a driver or torch raises
                dropped(name, one_line(error))
                del times[name]
    if not times:
        raise RuntimeError(f"none of the candidates ran: {', '.join(candidates) or 'there were none'}")
    medians = {name: statistics.median(values) for name, values in times.items()}
    return min(medians, key=medians.__getitem__), medians


def contest(
    key: str,
    candidates: Mapping[str, Callable[[], Results]],
    truth: Callable[[], Results],
    timer: Callable[[Callable[[], object]], float],
) -> str:
    """Time the candidates whose results agree with the plain path's, keep the timings under ``key``, name the winner.

    A candidate that raises or disagrees is dropped with a warning; empty if none is left or the plain path cannot run.
    """
    try:
        truths = truth()
        agreeing = {}
        for name, candidate in candidates.items():
            if reason := _objection(candidate, truths):
                dropped(name, reason)
            else:
                agreeing[name] = candidate
        del truths
        winner, seconds = fastest(agreeing, timer)
    except Exception as error:  # tuning is a convenience: out of memory, above all, must not stop the caller
        timings.warn_once(f"weit: not tuned, {one_line(error)}: {key}")
        return ""
    timings.cache().put(key, winner, seconds)
    return winner


def _objection(candidate: Callable[[], Results], truths: Results) -> str:
    try:
        return disagreement(candidate(), truths)
    except Exception as error:  # as in fastest
        return one_line(error)


def one_line(error: Exception) -> str:
    """The kind of an error and the first line of its message."""
    return f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"


def dropped(name: str, reason: str) -> None:
    """Warn that a candidate will not be used."""
    warnings.warn(f"weit: {name} is not used here: {reason}", RuntimeWarning, stacklevel=3)


def cuda_timer(function: Callable[[], object]) -> float:
    """Seconds that one call takes on the current stream.

    The device is kept busy first, until the host has launched everything, so that what counts is the device's time: a
    few rows take less than their launch, and a CUDA graph pays for none.
    """
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    ahead = 1e-3
    for _ in range(3):
        torch.cuda.synchronize()
        keep_busy(ahead)
        began = perf_counter()
        start.record()
        function()
        end.record()
        took = perf_counter() - began
        end.synchronize()
        if took < ahead:
            break
        ahead = 2 * took
    return start.elapsed_time(end) / 1e3


def calls_timer(function: Callable[[], object], calls: int = 20) -> float:
    """Seconds that one of several calls takes, back to back: the device's time or that of the launches, the longer one."""
    torch.cuda.synchronize()
    began = perf_counter()
    for _ in range(calls):
        function()
    torch.cuda.synchronize()
    return (perf_counter() - began) / calls


def keep_busy(seconds: float) -> None:
    """Let the current stream do nothing for at least so long, at clocks up to 3 GHz."""
    torch.cuda._sleep(int(seconds * 3e9))


def disagreement(values: Results, truths: Results) -> str:
    """Why results cannot stand in for the plain path's, as relative errors in norm; empty where they can."""
    for index, (value, truth) in enumerate(zip(values, truths, strict=True)):
        if truth is None or truth.numel() == 0:
            continue
        if value is None or value.shape != truth.shape or value.dtype != truth.dtype:
            return f"result {index} has another shape or dtype"
        scale = torch.linalg.vector_norm(truth, dtype=torch.promote_types(truth.dtype, torch.float32))
        error = float(torch.linalg.vector_norm(value - truth, dtype=scale.dtype) / scale)
        if not error <= tolerance(truth):  # NaN is no agreement
            return f"result {index} differs by {error:.1e} in relative norm, {tolerance(truth):.1e} is allowed"
    return ""


def _convolves_in_tf32() -> bool:
    return torch.backends.cudnn.conv.fp32_precision == "tf32"  # type: ignore[attr-defined]


def tolerance(like: Tensor) -> float:
    """How far two paths may differ: each rounds one intermediate to the operands' dtype; float32 may run as tf32."""
    if like.dtype == torch.float32 and like.is_cuda and (allows_tf32() or _convolves_in_tf32()):
        return 4 * 2.0**-10
    return torch.finfo(like.dtype).eps * (4 if like.itemsize == 2 else 256)
