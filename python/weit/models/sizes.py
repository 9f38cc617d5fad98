"""Sizes of models in words and numbers: ``64x6``, or ``embed_dim=192,depth=6`` for a model with other names for them."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from weit.models.create import create_model
from weit.tasks.classification import Task


def parse_size(text: str) -> dict[str, int]:
    """``"64x6"`` -> ``{"width": 64, "depth": 6}``; ``"embed_dim=192,depth=6"`` as it says.

    Raises:
        ValueError: it reads like neither.
    """
    try:
        if "=" not in text:
            width, depth = text.split("x")
            return {"width": int(width), "depth": int(depth)}
        return {name.strip(): int(value) for name, value in (part.split("=") for part in text.split(","))}
    except ValueError:
        raise ValueError(f"a size must look like 64x6 (width x depth) or name=64,other=6, got {text!r}") from None


def model_arguments(task: Task, model: str, size: dict[str, int]) -> dict[str, Any]:
    """Arguments of ``create_model`` for a model of that size for the images of ``task``."""
    patches = {"patch_size": task.patch_size} if model == "vit" else {}
    return {**task.model_args, **patches, **size}


def training_flops(model: str, arguments: dict[str, Any]) -> int:
    """Floating-point operations (two a multiply-add) of a dense model's forward and backward pass for one image."""
    with torch.device("meta"):  # nothing is computed, and attention is counted as the matrix products it is
        network = create_model(model, **arguments)
        side = arguments["img_size"]
        image = torch.empty(1, arguments["in_chans"], side, side)
    with FlopCounterMode(display=False) as counter:
        network(image).sum().backward()
    return counter.get_total_flops()
