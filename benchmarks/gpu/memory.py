"""Device memory of one step: its peak, its workspace, and its largest temporary."""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

_ROUNDING = 512  # the allocator's, in bytes


def measure(step: Callable[[], Sequence[Tensor]], device: str, weight_bytes: int) -> dict[str, Any]:
    """Bytes that one call of ``step`` takes on top of what was there before.

    ``workspace_bytes`` is the peak less the tensors that the step returns (for a training step: the output and all
    gradients). ``largest_temporary_bytes`` is the largest allocation that is none of those, and
    ``weight_sized_temporary`` whether it could hold the dense weight; ``None`` where torch does not record allocations.
    """
    if device != "cuda":
        return {"peak_bytes": None, "workspace_bytes": None, "memory": "needs a GPU"}
    step()
    gc.collect()
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    outputs = step()
    torch.cuda.synchronize()
    peak = torch.cuda.max_memory_allocated() - before
    workspace = max(0, peak - sum(map(_rounded, outputs)))
    del outputs
    largest = largest_temporary(step)
    return {
        "peak_bytes": peak,
        "workspace_bytes": workspace,
        "largest_temporary_bytes": largest,
        "weight_sized_temporary": None if largest is None else largest >= weight_bytes,
    }


def largest_temporary(step: Callable[[], Sequence[Tensor]]) -> int | None:
    """The largest allocation of a call that is no output, from the allocator's own record of events."""
    try:
        torch.cuda.memory._record_memory_history("all", context=None, max_entries=100_000)
    except Exception:  # a private function: gone or changed in some release
        return None
    try:
        outputs = step()
        torch.cuda.synchronize()
        events = torch.cuda.memory._snapshot()["device_traces"][torch.cuda.current_device()]
        sizes = [event["size"] for event in events if event["action"] == "alloc"]
        return largest_but_outputs(sizes, outputs) if sizes else None
    except (KeyError, IndexError, AttributeError):
        return None
    finally:
        torch.cuda.memory._record_memory_history(None)


def largest_but_outputs(sizes: Sequence[int], outputs: Sequence[Tensor]) -> int:
    """The largest of ``sizes`` when one allocation for each output is set aside; 0 if nothing is left."""
    left = [-(-size // _ROUNDING) * _ROUNDING for size in sizes]
    for output in outputs:
        if _rounded(output) in left:
            left.remove(_rounded(output))
    return max(left, default=0)


def _rounded(tensor: Tensor) -> int:
    return -(-tensor.nbytes // _ROUNDING) * _ROUNDING
