"""What the axes of a model's tensors run over."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeAlias

import torch
from torch import Tensor, nn

from weit.matching import DENSE, find_layers

Axis: TypeAlias = tuple[str, ...]
"""The features an axis runs over: one stream, several side by side (a fused qkv), or none where no width shows."""

RESIDUAL = "residual"
_ROLES = {
    "q": (("query",), (RESIDUAL,)),
    "k": (("key",), (RESIDUAL,)),
    "v": (("value",), (RESIDUAL,)),
    "o": ((RESIDUAL,), ("value",)),
    "fc1": (("hidden",), (RESIDUAL,)),
    "fc1_first": (("hidden",), (RESIDUAL,)),  # of a gated MLP: what is multiplied has the same features
    "fc1_second": (("hidden",), (RESIDUAL,)),
    "fc2": ((RESIDUAL,), ("hidden",)),
}


def width_axes(model: nn.Module) -> dict[str, tuple[Axis, ...]]:
    """For each tensor of ``model.state_dict()`` what each of its axes runs over.

    In a vision transformer the streams are the residual stream, queries, keys, values and the hidden features of the
    MLP; each has one size throughout. In a convolutional network all channels are called the residual stream. Layers
    that no rule names are read by their kind: a linear one is a classifier, a convolution comes from the image or has a
    kernel a channel, and what is in neither ends with the residual stream.

    Raises:
        ValueError: no built-in rules know the layers of ``model``, or its MLPs have gates that rules do not know of.
    """
    roles = {match.path: match.roles for match in find_layers(model, None)}
    width = next((model.get_submodule(path).in_features for path, role in roles.items() if "q" in role), None)
    modules = dict(model.named_modules())
    axes: dict[str, tuple[Axis, ...]] = {}
    for name, tensor in model.state_dict().items():
        path, _, _ = name.rpartition(".")
        if isinstance(modules[path], DENSE):
            rows_and_columns = _dense_axes(modules[path], roles.get(path))
            axes[name] = (*rows_and_columns[: tensor.dim()], *[()] * (tensor.dim() - 2))
        elif tensor.dim():
            # A norm of queries and keys is as long as a head.
            other = tensor.dim() == 1 and width not in (None, tensor.shape[0])
            axes[name] = (*[()] * (tensor.dim() - 1), () if other else (RESIDUAL,))
        else:
            axes[name] = ()
    if width is not None:
        stream_sizes(model.state_dict(), axes)  # refuses an MLP whose halves are a gate and what it gates
    return axes


def stream_sizes(state: Mapping[str, Tensor], axes: Mapping[str, tuple[Axis, ...]]) -> dict[str, int]:
    """Features of each stream of a vision transformer.

    Raises:
        ValueError: a stream has several sizes, as in a convolutional network or an MLP with gates that rules do not know of.
    """
    sizes: dict[str, int] = {}
    for name, tensor in state.items():
        for axis, size in zip(axes[name], tensor.shape, strict=True):
            for stream in axis:
                if sizes.setdefault(stream, size // len(axis)) != size // len(axis):
                    raise ValueError(f"{name} has {size // len(axis)} {stream} features, others {sizes[stream]}")
    return sizes


def copies(old: int, new: int, axis: Axis) -> Tensor:
    """For each of ``new`` entries along ``axis`` the one of ``old`` that it repeats, stream by stream from the start.

    Attention heads of one size stay whole.
    """
    parts = len(axis)
    within = torch.arange(new // parts) % (old // parts)
    return torch.cat([within + part * (old // parts) for part in range(parts)])


def require_fit(made: Mapping[str, Tensor], ours: Mapping[str, Tensor], differ: str) -> None:
    """Raise ``ValueError`` unless every tensor that was made from a source's has the shape of the target's."""
    for name, tensor in ours.items():
        if made[name].shape != tensor.shape:
            sizes = f"{tuple(made[name].shape)} from source and {tuple(tensor.shape)} in target"
            raise ValueError(f"source and target must differ in {differ} alone, but {name} is {sizes}")


def _dense_axes(layer: nn.Module, roles: tuple[str, ...] | None) -> tuple[Axis, Axis]:
    """Of the rows and of the columns of a linear layer or a convolution."""
    if roles is None:
        return ((), (RESIDUAL,)) if isinstance(layer, nn.Linear) else ((RESIDUAL,), ())
    known = [_ROLES.get(role, ((RESIDUAL,), (RESIDUAL,))) for role in roles]
    return tuple(stream for rows, _ in known for stream in rows), known[0][1]
