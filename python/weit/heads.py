"""The size of attention heads, which cutting and repeating along the width leaves as it is."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from torch import nn


def head_dims(model: nn.Module) -> set[int]:
    """Features of a head in the attention modules of ``model``."""
    return {size for module in model.modules() if isinstance(size := _head_dim(module), int)}


def require_same_heads(
    target: nn.Module, known: Collection[int], *, target_name: str = "target", source_name: str = "source"
) -> None:
    """Raise ``ValueError`` unless attention heads in ``target`` are of the sizes ``known`` from what its weights come from.

    Weights of other heads fit by their shapes, but features of one head would become features of several.
    """
    if not (found := head_dims(target)) <= set(known):
        sizes = f"{sorted(known)} in {source_name} and {sorted(found)} in {target_name}"
        raise ValueError(f"attention heads must be of one size, got {sizes}")


def _head_dim(module: Any) -> Any:
    for name in ("head_dim", "attention_head_size"):
        if hasattr(module, name):
            return getattr(module, name)
    heads, features = getattr(module, "heads", None), getattr(module, "inner_dim", None)  # as diffusers says it
    return features // heads if isinstance(heads, int) and isinstance(features, int) and heads else None
