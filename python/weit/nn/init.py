"""Template shapes and starting values of Kron layers: their dense weight is like a fresh ``nn.Linear``'s."""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil, gcd, log, sqrt

import torch
from torch import Tensor

from weit_kernels import kron_weight

_BLOCKS = 16
_SMALLEST = 16


def default_template_size(sizes: Sequence[int]) -> int:
    """Rows (or columns) of the templates of layers with ``sizes`` output (or input) features.

    Contracting templates first costs ``N/m + N/q`` of the dense layer and the other way round ``N/n + N/p``,
    so both the number of blocks and their size should exceed ``N`` clearly: about 16 blocks, of no less than
    16 features. The size is the divisor of all ``sizes`` nearest to that (in ratio). Where none is within a
    factor of two, blocks are ragged, with the fewest features more than the largest layer needs.

    Args:
        sizes: one positive int for each layer that shares the templates.
    """
    largest = max(sizes)
    target = min(largest, max(_SMALLEST, largest / _BLOCKS))
    common = gcd(*sizes)
    nearest = min((d for d in range(1, common + 1) if common % d == 0), key=lambda d: abs(log(d / target)))
    if target / 2 <= nearest <= target * 2:
        return nearest
    return ceil(largest / round(largest / target))


def weight_scale(fan_in: int) -> float:
    """Standard deviation of torch's fresh linear and convolution weights: ``kaiming_uniform_(a=sqrt(5))``."""
    return 1 / sqrt(3 * fan_in)


@torch.no_grad()
def reset_templates(templates: Tensor, fan_in: int) -> None:
    """Draw ``templates (N, p, q, *kernel)`` anew, uniform, for layers with ``fan_in`` inputs an output.

    They are given the size of the weights they stand for, so that they also learn at the rate that suits dense weights.
    Scalers, which mix ``N`` of them, make up the rest: their root mean square is ``1 / sqrt(N)``.
    """
    bound = sqrt(3) * weight_scale(fan_in)
    templates.uniform_(-bound, bound)


@torch.no_grad()
def reset_scalers(scalers: Tensor, templates: Tensor, fan_in: int) -> None:
    """Draw ``scalers (N, m, n)`` anew so that the dense weight has mean 0 and variance ``1 / (3 fan_in)``.

    Each block of the weight gets a random direction in the space that the templates span: independent normal
    numbers, normalised over the ``N`` templates, so that no block starts near zero however few templates
    there are. Their size follows from the mean square that ``templates`` have now, pre-trained or fresh.
    """
    precision = torch.float64 if scalers.dtype == torch.float64 else torch.float32
    draws = torch.randn(scalers.shape, dtype=precision, device=scalers.device)
    size = templates.to(precision).square().mean().sqrt()
    scale = torch.where(size > 0, weight_scale(fan_in) / size, torch.ones_like(size))
    scalers.copy_(draws / torch.linalg.vector_norm(draws, dim=0, keepdim=True) * scale)


def nearest_scalers(weight: Tensor, templates: Tensor, layout: str) -> Tensor:
    """Least-squares scalers of ``weight (out, in, *kernel)`` for given ``templates (N, p, q, *kernel)``.

    Returns:
        ``(N, m, n)``, dtype of ``weight``; computed in float64. Where blocks are cut, what is cut off does not count.
    """
    N, p, q = templates.shape[:3]
    exact = templates.detach().double()
    (out, inn), m, n = weight.shape[:2], ceil(weight.shape[0] / p), ceil(weight.shape[1] / q)
    scalers = exact.new_zeros(N, m, n, requires_grad=True)
    # The weight is linear in the scalers, so this derivative is the inner product of every template with
    # every block.
    with torch.enable_grad():
        model = kron_weight(exact, scalers, out_features=out, in_features=inn, layout=layout)
        (inner,) = torch.autograd.grad(model, scalers, weight.detach().double())
    solved = torch.empty_like(inner)
    rows, columns = _kept(out, m, p, layout).to(inner.device), _kept(inn, n, q, layout).to(inner.device)
    for height in rows.unique():  # at most two of each: whole blocks, and those that are cut
        for width in columns.unique():
            flat = exact[:, :height, :width].flatten(1)
            alike = torch.outer(rows == height, columns == width)
            solved[:, alike] = torch.linalg.pinv(flat @ flat.T, hermitian=True) @ inner[:, alike]
    return solved.to(weight.dtype)


def _kept(features: int, blocks: int, size: int, layout: str) -> Tensor:
    """How many of its first ``size`` rows (or columns) each block keeps where ``features`` are fewer than all blocks'."""
    positions = torch.arange(blocks * size)
    grid = positions.view(blocks, size) if layout == "block" else positions.view(size, blocks).T
    return (grid < features).sum(1)
