"""Contraction paths in plain torch, one file each.

Every path computes the same four functions on block-layout operands, ``x (M, n·q)``, ``T (N, p, q)``, ``S (N, m, n)``:
``linear``, ``linear_backward``, ``conv`` and ``conv_backward``; and states its own ``cost``, which the planner reads.
"""

from weit_kernels.paths import panel, scalers_first, templates_first

PATHS = {"templates_first": templates_first, "scalers_first": scalers_first, "panel": panel}

__all__ = ["PATHS"]
