"""Drop-in layers: ``nn.Linear`` and ``nn.Conv`` whose weights are sums of Kronecker products."""

from weit.nn.conv import KronConv1d, KronConv2d, KronConv3d
from weit.nn.linear import KronFusedLinear, KronLinear

__all__ = ["KronConv1d", "KronConv2d", "KronConv3d", "KronFusedLinear", "KronLinear"]
