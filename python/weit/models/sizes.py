"""Sizes of models in words and numbers: ``64x6``, or ``embed_dim=192,depth=6`` for a model with other names for them."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from weit.models.create import create_model


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


def training_flops(model: str, arguments: dict[str, Any]) -> int:
    """Floating-point operations (two a multiply-add) of a dense model's forward and backward pass for one item.

    The item is what the model's ``example_inputs`` gives, or else an image.
    """
    with torch.device("meta"):  # nothing is computed, and attention is counted as the matrix products it is
        network = create_model(model, **arguments)
        example = getattr(network, "example_inputs", None)
        if callable(example):
            inputs = example()
        else:
            side = arguments["img_size"]
            inputs = (torch.empty(1, arguments["in_chans"], side, side),)
    network.eval()  # batch norms that learn refuse a single pixel of a single item
    with FlopCounterMode(display=False) as counter:
        network(*inputs).sum().backward()
    return counter.get_total_flops()
