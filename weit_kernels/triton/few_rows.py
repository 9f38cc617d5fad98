"""Few rows (M ≤ 64): the forward kernels with tiles that spread a small problem over the whole machine.

Such a call is bound by its launch and by reading the factors once. So one launch does it, and programs split template
rows ``a``, then scaler rows ``i``: no program needs another's sum, while splitting ``j`` would take a second launch or
locks. Each recomputes the intermediate of its own rows, which costs nothing where a split over ``a`` fills the machine.
"""

from __future__ import annotations

from torch import Tensor

from weit_kernels.shapes import FEW_ROWS
from weit_kernels.triton.tiles import Tiles, forward_tiles, power_of_two, programs


def tiles_for(x: Tensor, n: int, q: int, p: int, m: int, N: int) -> Tiles:
    """Tiles for the rows of ``x``; the other arguments as in ``forward_tiles``."""
    if x.shape[0] > FEW_ROWS:
        return forward_tiles(n, q, p, m, N, x.element_size())
    return few_rows_tiles(x.shape[0], programs(x), n, q, p, m, N, x.element_size())


def few_rows_tiles(M: int, wanted: int, n: int, q: int, p: int, m: int, N: int, itemsize: int) -> Tiles:
    """Tiles for ``M`` rows that make about ``wanted`` programs, none of them so small that a product has no 16 rows."""
    a = power_of_two(max(1, p // wanted), 16)
    t = max(power_of_two(N, 8), 16 // a)
    tokens = max(power_of_two(M, 16), 16 // a)
    j = max(power_of_two(n, max(1, 128 // tokens)), 16 // tokens, 16 // t)
    blocks = -(-p // a) * -(-M // tokens)
    i = max(16, power_of_two(-(-m * blocks // wanted), 64))
    return Tiles(
        tokens, j, max(16, power_of_two(q, 128 // itemsize)), t, a, min(i, max(16, power_of_two(m, 64))), warps=4
    )
