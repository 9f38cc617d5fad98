"""Nearest sum of Kronecker products: templates and scalers in closed form from dense weights."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from math import ceil, prod, sqrt

import torch
import torch.nn.functional as F
from torch import Tensor

from weit_kernels.reference import kron_weight
from weit_kernels.shapes import LAYOUTS, as_int, check_choice, check_finite, check_floating, sizes


def nearest_kron(
    weights: Tensor | Sequence[Tensor], N: int, template_shape: Sequence[int], *, layout: str = "block"
) -> tuple[Tensor, list[Tensor], float]:
    """Best fit of ``N`` shared templates to one dense weight or to several, in Frobenius norm.

    Each weight is rearranged so that one ``p × q`` block becomes one row; a sum of ``N`` Kronecker products is then a
    matrix of rank ``N``, and the truncated SVD of all rows together is optimal (Van Loan & Pitsianis, "Approximation
    with Kronecker Products", 1993). Weights that ``template_shape`` does not divide are padded with zeros, so there the
    optimum is that of the padded weight.

    Args:
        weights: ``(out, in, *kernel)``, or a sequence of such tensors that will share templates; sizes may differ,
            kernels, dtypes and devices may not.
        N: how many templates. Beyond the full rank, ``min(Σ m·n, p·q·taps)``, where the fit is exact, they repeat the
            others, with scalers of zero, which training may use.
        template_shape: ``(p, q)``; the kernel is that of the weights.
        layout: ``"block"`` or ``"interleaved"``.

    Returns:
        ``templates (N, p, q, *kernel)`` with the weights' own root mean square, a list with one ``scalers (N, m, n)``
        for each weight, and the relative error ``‖W - Ŵ‖ / ‖W‖`` over all weights.

    Raises:
        TypeError: a weight is no floating tensor, ``template_shape`` no sequence of ints. ValueError: shapes, ``N`` or
            ``layout`` do not fit; a weight on the meta device, NaN or infinity.
    """
    if not isinstance(weights, Tensor | Iterable):
        raise TypeError(f"weights must be a tensor or a sequence of tensors, got {type(weights).__name__}")
    weights = [weights] if isinstance(weights, Tensor) else list(weights)
    N, p, q = _check(weights, N, template_shape, layout)
    kernel = weights[0].shape[2:]
    grids = [(ceil(w.shape[0] / p), ceil(w.shape[1] / q)) for w in weights]
    # float64: a float32 SVD would leave 1e-4 of a weight behind at full rank. By the largest number, so that squares of all
    # are numbers too.
    largest = float(max(w.detach().abs().max() for w in weights)) or 1.0
    exact = [w.detach().double() / largest for w in weights]
    rows = torch.cat([_rearrange(w, m, n, p, q, layout) for w, (m, n) in zip(exact, grids, strict=True)])
    u, sigma, vh = torch.linalg.svd(rows, full_matrices=False)
    u, sigma, vh = u[:, :N], sigma[:N], vh[:N]
    # An SVD's signs are arbitrary; a fixed choice makes banks reproducible across libraries.
    signs = vh.gather(1, vh.abs().argmax(1, keepdim=True)).sign()
    mean_square = sum(w.square().sum() for w in exact) / sum(w.numel() for w in exact)
    scale = (mean_square * vh.shape[1]).sqrt().clamp_min(torch.finfo(torch.float64).tiny)
    rank = sigma.shape[0]
    vectors = (vh * signs * scale * largest)[torch.arange(N, device=vh.device) % rank]
    coefficients = F.pad(u * (sigma / scale) * signs.T, (0, N - rank)).split([m * n for m, n in grids])
    dtype = weights[0].dtype
    templates = vectors.reshape(N, p, q, *kernel).to(dtype)
    scalers = [c.T.reshape(N, m, n).contiguous().to(dtype) for c, (m, n) in zip(coefficients, grids, strict=True)]

    missed = total = 0.0  # by what is returned, rounded as it is
    for w, s in zip(exact, scalers, strict=True):
        cut = {"out_features": w.shape[0], "in_features": w.shape[1]}
        missed += float(
            (w - kron_weight(templates.double() / largest, s.double(), **cut, layout=layout)).square().sum()
        )
        total += float(w.square().sum())
    return templates, scalers, sqrt(missed / total) if total else 0.0


def _rearrange(weight: Tensor, m: int, n: int, p: int, q: int, layout: str) -> Tensor:
    """``(out, in, *kernel)`` → ``(m·n, p·q·taps)``: one row for each block that one scaler entry multiplies."""
    out, inn, *kernel = weight.shape
    taps = prod(kernel)
    padded = F.pad(weight.reshape(out, inn, taps), (0, 0, 0, n * q - inn, 0, m * p - out))
    if layout == "block":
        blocks = padded.reshape(m, p, n, q, taps).permute(0, 2, 1, 3, 4)
    else:
        blocks = padded.reshape(p, m, q, n, taps).permute(1, 3, 0, 2, 4)
    return blocks.reshape(m * n, p * q * taps)


def _check(weights: list[Tensor], N: int, template_shape: Sequence[int], layout: str) -> tuple[int, int, int]:
    check_choice("layout", layout, LAYOUTS)
    if not weights:
        raise ValueError("weights must hold at least one tensor, got an empty sequence")
    for i, w in enumerate(weights):
        check_floating(f"weights[{i}]", w)
        if w.dim() < 2 or 0 in w.shape:
            raise ValueError(f"weights[{i}] must have shape (out, in, *kernel), none empty, got {tuple(w.shape)}")
        if (w.shape[2:], w.dtype, w.device) != (weights[0].shape[2:], weights[0].dtype, weights[0].device):
            raise ValueError(
                f"weights[{i}] must share kernel, dtype and device with weights[0]: "
                f"{tuple(w.shape)} {w.dtype} {w.device} beside "
                f"{tuple(weights[0].shape)} {weights[0].dtype} {weights[0].device}"
            )
        check_finite(f"weights[{i}]", w)
    count = as_int(N)
    if count is None or count < 1:
        raise ValueError(f"N must be a positive int, got {N!r}")
    shape = sizes("template_shape", template_shape)
    if len(shape) != 2:
        raise ValueError(f"template_shape must be two positive ints (p, q), got {shape}")
    return count, *shape
