"""The contraction paths fused in Triton, file for file the twins of ``weit_kernels.paths``.

Imported on first use: the package works without Triton.
"""

from types import ModuleType

from weit_kernels.triton import on_the_fly, panel, scalers_first, templates_first

PATHS: dict[str, ModuleType] = {
    "templates_first": templates_first,
    "scalers_first": scalers_first,
    "panel": panel,
    "on_the_fly": on_the_fly,
}

__all__ = ["PATHS"]
