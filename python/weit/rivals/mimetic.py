"""Mimetic initialisation: attention that starts with the products of weights that trained vision transformers have."""

from __future__ import annotations

from collections.abc import Iterator
from math import isqrt

import torch
from torch import Tensor, nn

from weit.heads import head_dims
from weit.matching import by_role, find_layers

_PREFIX_TOKENS = ("cls_token", "dist_token", "distillation_token", "reg_token")


@torch.no_grad()
def initialize_like(
    target: nn.Module,
    source: nn.Module | None = None,
    *,
    seed: int = 0,
    alpha1: float = 0.7,
    beta1: float = 0.7,
    alpha2: float = 0.4,
    beta2: float = 0.4,
) -> nn.Module:
    """Write queries, keys, values and output projections of ``target`` anew, in place, and return it.

    With ``Z`` of independent normal entries of variance ``1 / width``, drawn anew for each product: the product of a
    head's query and key weights is the best approximation of its rank to ``alpha1 Z + beta1 I``, that of all value and
    output weights is ``alpha2 Z - beta2 I``; both are halved by a singular value decomposition. Learned position
    embeddings become sinusoidal. Everything else, biases too, stays as it is.

    The paper leaves open which sinusoids: here the two-dimensional ones of Beyer et al. 2022, "Better plain ViT
    baselines", because patches lie on a grid. Positions of class and register tokens are no patches and stay.

    Args:
        target: a vision transformer that built-in rules know.
        source: not used.
        seed: of ``Z``.
        alpha1, beta1, alpha2, beta2: sizes of the random part and of the diagonal.

    Raises:
        ValueError: ``target`` is no such transformer, or its positions are not on a square grid of a width that four
            divides; it is unchanged then.

    Source: Trockman & Kolter, "Mimetic Initialization of Self-Attention Layers", ICML 2023 (arXiv 2305.09828).
    """
    weights = by_role(find_layers(target, None))
    if not {"q", "k", "v", "o"} <= weights.keys() or len(head_dims(target)) != 1:
        raise ValueError(
            f"mimetic initialisation is for the attention of vision transformers, not {type(target).__name__}"
        )
    (head_dim,) = head_dims(target)
    q, k, v, o = ([weight for _, weight in weights[role]] for role in "qkvo")
    width = q[0].shape[1]
    positions = {name: _sinusoids(target, parameter) for name, parameter in _learned_positions(target)}
    generator = torch.Generator().manual_seed(seed)
    for query, key, value, out in zip(q, k, v, o, strict=True):
        for head_query, head_key in zip(query.split(head_dim), key.split(head_dim), strict=True):
            left, right = _halves(alpha1 * _noise(width, generator) + beta1 * torch.eye(width), head_dim)
            head_query.copy_(left.T)
            head_key.copy_(right.T)
        left, right = _halves(alpha2 * _noise(width, generator) - beta2 * torch.eye(width), value.shape[0])
        value.copy_(left.T)
        out.copy_(right)
    for name, embedding in positions.items():
        target.get_parameter(name)[:, -embedding.shape[0] :].copy_(embedding)
    return target


def _noise(width: int, generator: torch.Generator) -> Tensor:
    return torch.randn(width, width, generator=generator) / width**0.5


def _halves(product: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """``L`` and ``R`` of ``rank`` columns with ``L Rᵀ`` as near to ``product`` as that rank allows."""
    left, values, right = torch.linalg.svd(product.double())
    root = values[:rank].sqrt()
    return (left[:, :rank] * root).float(), (right[:rank].T * root).float()


def _learned_positions(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    for name, parameter in model.named_parameters():
        if name.endswith(("pos_embed", "position_embeddings")) and parameter.requires_grad:
            yield name, parameter


def _sinusoids(model: nn.Module, embedding: Tensor) -> Tensor:
    """Sines and cosines of the row and of the column of each patch, ``(patches, width)``."""
    tokens, width = embedding.shape[-2:]
    prefix = [each for name, each in model.named_parameters() if name.rpartition(".")[2] in _PREFIX_TOKENS]
    without_prefix = tokens - sum(each.shape[1] for each in prefix)
    side = next((isqrt(n) for n in (without_prefix, tokens) if n > 0 and isqrt(n) ** 2 == n), 0)
    if not side or width % 4:
        raise ValueError(
            f"positions must be on a square grid, of a width that 4 divides, got {tokens} of width {width}"
        )
    rates = 1e4 ** -torch.linspace(0, 1, width // 4)
    row, column = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    angles = torch.cat([place.flatten()[:, None] * rates for place in (column, row)], 1)
    by_place = angles.view(side * side, 2, -1)
    return torch.cat([by_place.sin(), by_place.cos()], -1).flatten(1)
