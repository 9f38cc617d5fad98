"""The operator: products with ``W = Σ_t S_t ⊗ T_t`` that never build ``W``. Knows tensors, not modules."""

from weit_kernels._version import __version__
from weit_kernels.functional import kron_linear, kron_weight
from weit_kernels.functional_conv import kron_conv1d, kron_conv2d, kron_conv3d
from weit_kernels.nearest import nearest_kron
from weit_kernels.plan import Plan, plan

__all__ = [
    "Plan",
    "__version__",
    "kron_conv1d",
    "kron_conv2d",
    "kron_conv3d",
    "kron_linear",
    "kron_weight",
    "nearest_kron",
    "plan",
]
