"""The contraction paths fused in Triton, file for file the twins of ``weit_kernels.paths``.

Imported on first use: the package works without Triton.
"""

from weit_kernels.triton import scalers_first, templates_first

PATHS = {"templates_first": templates_first, "scalers_first": scalers_first}

__all__ = ["PATHS"]
