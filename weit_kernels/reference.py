"""The definition, in plain torch: what every path and every backend is tested against.

    y[b, i, a] = Σ_{t,j,k} S[t, i, j] · T[t, a, k] · x[b, j, k]

``b`` token, ``i, j`` scaler row and column, ``a, k`` template row and column, ``t`` template. In the ``block`` layout
the features of ``x`` are ordered ``(j, k)`` and those of ``y`` ``(i, a)``; in the ``interleaved`` layout ``(k, j)`` and
``(a, i)``. Nothing here is fast; everything here is short.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def kron_weight(
    templates: Tensor,
    scalers: Tensor,
    *,
    out_features: int | None = None,
    in_features: int | None = None,
    layout: str = "block",
) -> Tensor:
    """Dense weight ``Σ_t kron(S_t, T_t)`` (block) or ``Σ_t kron(T_t, S_t)`` (interleaved), cut where asked.

    ``templates (N, p, q, *kernel)``, ``scalers (N, m, n)`` → ``(out, in, *kernel)``.
    """
    _, p, q, *kernel = templates.shape
    _, m, n = scalers.shape
    order = "iajk" if layout == "block" else "aikj"
    weight = torch.einsum(f"tij,tak...->{order}...", scalers, templates)
    return weight.reshape(m * p, n * q, *kernel)[:out_features, :in_features]


def kron_linear(
    x: Tensor,
    templates: Tensor,
    scalers: Tensor,
    bias: Tensor | None = None,
    *,
    out_features: int | None = None,
    layout: str = "block",
) -> Tensor:
    """``F.linear`` with the dense weight: ``x (..., in)`` → ``(..., out)``."""
    weight = kron_weight(templates, scalers, out_features=out_features, in_features=x.shape[-1], layout=layout)
    return F.linear(x, weight, bias)


def kron_conv(
    x: Tensor,
    templates: Tensor,
    scalers: Tensor,
    bias: Tensor | None = None,
    *,
    groups: int = 1,
    out_channels: int | None = None,
    layout: str = "block",
    **conv_args: Any,
) -> Tensor:
    """``F.conv1d/2d/3d`` with the dense weight; ``templates (N, p, q, *kernel)``, ``x (batch, in, *spatial)``."""
    dims = templates.dim() - 3
    in_features = x.shape[-1 - dims] // groups
    weight = kron_weight(templates, scalers, out_features=out_channels, in_features=in_features, layout=layout)
    conv = (F.conv1d, F.conv2d, F.conv3d)[dims - 1]
    return conv(x, weight, bias, groups=groups, **conv_args)
