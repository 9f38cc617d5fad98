"""Built-in rules: which layers of which model families get which role."""

from __future__ import annotations

import re

from torch import nn

from weit.rules import (
    diffusers_dit,
    hf_convnext,
    hf_resnet,
    hf_vit,
    timm_convnext,
    timm_resnet,
    timm_vit,
    weit_dit,
    weit_policy,
    weit_vit,
)
from weit.rules.family import Family, Role, Rules

__all__ = ["FAMILIES", "Family", "Role", "Rules", "find_rules"]

_MODULES = (
    weit_dit,
    weit_policy,
    weit_vit,
    timm_vit,
    timm_resnet,
    timm_convnext,
    hf_vit,
    hf_resnet,
    hf_convnext,
    diffusers_dit,
)
FAMILIES = tuple(family for module in _MODULES for family in module.FAMILIES)


def find_rules(model: nn.Module) -> Rules:
    """The rules of the first family that has all its marks among the modules of ``model``.

    Raises:
        ValueError: no family has.
    """
    names = []
    for path, module in model.named_modules():
        names += [path, *(f"{path}:{kind.__name__}" for kind in type(module).__mro__)]
    for family in FAMILIES:
        if all(any(re.fullmatch(mark, name) for name in names) for mark in family.marks):
            return family.rules
    known = "; ".join(family.name for family in FAMILIES)
    raise ValueError(
        f"no built-in rules know the layers of {type(model).__name__} (known: {known}). "
        'Pass rules={"pattern on module path": "role", ...}'
    )
