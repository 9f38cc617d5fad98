"""Sizes of models in words and numbers: ``64x6``, or ``layers=2-2-2-2`` for a model with other names for them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from weit.models.create import create_model

Size = dict[str, int | list[int]]
"""Names and values of a model's sizes, such as ``{"width": 64, "depth": 6}``."""

_HEADS = {"embed_dim": "num_heads", "hidden_size": "num_attention_heads"}
"""Of models whose heads are counted: the width, and how many heads it is split into."""

_SMALLER = ((48, 6), (32, 6), (64, 3), (48, 4), (32, 3))


def parse_size(text: str) -> Size:
    """``"64x6"`` -> ``{"width": 64, "depth": 6}``; ``"layers=2-2,width=64"`` -> ``{"layers": [2, 2], "width": 64}``.

    Raises:
        ValueError: it reads like neither.
    """
    try:
        if "=" not in text:
            width, depth = text.split("x")
            return {"width": int(width), "depth": int(depth)}
        return {name.strip(): _value(value) for name, value in (part.split("=") for part in text.split(","))}
    except ValueError:
        raise ValueError(f"a size must look like 64x6 (width x depth) or name=64,other=2-2, got {text!r}") from None


def usual_smaller(size: Size) -> list[str]:
    """What a pre-training at ``size`` also runs at where the user names nothing: those of 48x6, 32x6, 64x3, 48x4 and 32x3
    that are a part of it, all else as in ``size``; none for a model whose sizes have other names.
    """
    width, depth, head_dim = size.get("width"), size.get("depth"), size.get("head_dim", 1)
    if not (isinstance(width, int) and isinstance(depth, int) and isinstance(head_dim, int)):
        return []
    pairs = [(w, d) for w, d in _SMALLER if w <= width and d <= depth and w % max(1, head_dim) == 0]
    return [_text({**size, "width": w, "depth": d}) for w, d in pairs if (w, d) != (width, depth)]


def at_other_size(known: Size, asked: Size) -> Size:
    """The sizes ``asked`` for, the others as ``known``; where heads are counted, their number follows the width."""
    size = {**known, **asked}
    for width, heads in _HEADS.items():
        old, new, count = known.get(width), size.get(width), known.get(heads)
        if heads not in asked and isinstance(old, int) and isinstance(new, int) and isinstance(count, int):
            size[heads] = max(1, count * new // old)
    return size


def _text(size: Size) -> str:
    """What ``parse_size`` reads ``size`` from."""
    if size.keys() == {"width", "depth"}:
        return f"{size['width']}x{size['depth']}"
    return ",".join(f"{name}={'-'.join(map(str, v)) if isinstance(v, list) else v}" for name, v in size.items())


def _value(text: str) -> int | list[int]:
    return [int(part) for part in text.split("-")] if "-" in text else int(text)


def example_inputs(network: nn.Module, arguments: dict[str, Any]) -> tuple[Tensor, ...]:
    """One item for ``network``, built with ``arguments``: what its own ``example_inputs`` gives, or else an image."""
    example = getattr(network, "example_inputs", None)
    if callable(example):
        return example()
    side = arguments["img_size"]
    return (torch.empty(1, arguments["in_chans"], side, side),)


def training_flops(model: str, arguments: dict[str, Any]) -> int:
    """Floating-point operations (two a multiply-add) of a dense model's forward and backward pass for one item.

    Raises:
        ValueError: it does not take such an item.
    """
    with torch.device("meta"):  # nothing is computed, and attention is counted as the matrix products it is
        network = create_model(model, **arguments)
        inputs = example_inputs(network, arguments)
    network.eval()  # batch norms that learn refuse a single pixel of a single item
    with FlopCounterMode(display=False) as counter:
        try:
            network(*inputs).sum().backward()
        except RuntimeError as error:
            sizes = ", ".join(f"{name}={value}" for name, value in arguments.items())
            raise ValueError(f"model {model} with {sizes} takes no item of the data: {error}") from error
    return counter.get_total_flops()
