"""What trains in a given memory, by the model of ``benchmarks.memory.model``: the deepest, the widest, the largest bank."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch

from benchmarks.memory.model import Kron, Sizes, stack_memory
from weit_kernels.paths.blocks import GPU_BLOCK_BYTES

BUDGETS_GB = (8, 16, 24, 80)  # 10⁹ bytes, as cards are sold
MOST = 4096
# A decoder in the sizes of a model of 7 · 10⁹ weights, on one sequence of 512 tokens.
DECODER = Sizes(32, 4096, 11008, 32, 1, 512, gated=True, bias=False, dtype=torch.bfloat16)
BANK = Kron(8, 256, 256)
SMALL = Kron(8, 64, 64)  # of which 4096, in layers of 4096 x 4096, make any weight: more say nothing new
FULL_RANK = 4096
WIDTH_STEP = 256


def largest(fits: Callable[[int], bool], most: int = MOST) -> int:
    """The largest number up to ``most`` that fits, 0 if not even 1 does; ``fits`` must turn false once and for all."""
    low, high = 0, most + 1
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def widened(sizes: Sizes, width: int) -> Sizes:
    """The same stack at another width: heads of 128 features, a hidden size of 2.6875 widths."""
    return replace(sizes, width=width, heads=width // 128, hidden=width * 43 // 16)


def rows() -> list[dict[str, Any]]:
    """One row a budget: depth at width 4096, width at depth 32, and templates a role, dense and on a bank."""
    found = []
    for budget in BUDGETS_GB:

        def fits(sizes: Sizes, kron: Kron | None, budget: int = budget) -> bool:
            # These are budgets of GPUs: the operator's workspace is their bound, whatever is planned for this machine.
            peak = stack_memory(sizes, kron, "cuda", work=0 if kron is None else GPU_BLOCK_BYTES).peak
            return peak is not None and peak <= budget * 10**9

        def depth(kron: Kron | None, fits: Callable[..., bool] = fits) -> int:
            return largest(lambda d: fits(replace(DECODER, depth=d), kron))

        def width(kron: Kron | None, fits: Callable[..., bool] = fits) -> int:
            return WIDTH_STEP * largest(lambda w: fits(widened(DECODER, WIDTH_STEP * w), kron))

        found.append(
            {
                "budget_gb": budget,
                "depth_dense": depth(None),
                "depth_kron": depth(BANK),
                "width_dense": width(None),
                "width_kron": width(BANK),
                "templates": largest(lambda N, fits=fits: fits(DECODER, replace(SMALL, N=N)), FULL_RANK),
            }
        )
    return found
