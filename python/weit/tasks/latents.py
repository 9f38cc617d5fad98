"""Latents of images, made beforehand by an autoencoder: one file, split here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from torch.utils.data import TensorDataset

from weit.tasks.classification import stratified

_PATCH = 2  # as in the DiT paper


def read(path: Path | None) -> tuple[list[TensorDataset], dict[str, Any], int]:
    """Train, validation and test split, arguments of ``create_model``, and the side of a patch.

    Args:
        path: a safetensors file with ``latents`` ``(n, C, side, side)``, floating, and ``labels`` ``(n,)``, integers from
            0. A sixth of the items each is for validation and test, every label in its share.

    Raises:
        ValueError: no path, or a damaged or foreign file. FileNotFoundError: there is no such file.
    """
    if path is None:
        raise ValueError("root must be a safetensors file for latents, got None")
    if not path.is_file():
        raise FileNotFoundError(f"no file of latents at {path}")
    try:
        tensors = load_file(path)
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged or no safetensors file: {error}") from error
    latents, labels = _checked(path, tensors)
    held_out = -(-len(labels) // 6)
    test, rest = stratified(labels.numpy(), held_out)
    validation, train = (rest[part] for part in stratified(labels[rest].numpy(), held_out))
    splits = [TensorDataset(latents[part].float(), labels[part].long()) for part in (train, validation, test)]
    side = latents.shape[-1]
    arguments = {"img_size": side, "in_chans": latents.shape[1], "num_classes": int(labels.max()) + 1}
    return splits, arguments, _PATCH


def _checked(path: Path, tensors: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    if set(tensors) != {"latents", "labels"}:
        raise ValueError(f"{path} should hold latents and labels, but holds {', '.join(sorted(tensors)) or 'nothing'}")
    latents, labels = tensors["latents"], tensors["labels"]
    if latents.dim() != 4 or latents.shape[2] != latents.shape[3] or latents.shape[2] % _PATCH or len(latents) < 3:
        expected = f"latents (n, C, side, side), three at least, the side a multiple of {_PATCH}"
        raise ValueError(f"{path} should hold {expected}, but holds {tuple(latents.shape)}")
    if not latents.is_floating_point() or not torch.isfinite(latents).all():
        raise ValueError(f"{path} should hold finite floating latents, but holds {latents.dtype}, or NaN or infinity")
    if labels.shape != latents.shape[:1] or labels.is_floating_point() or labels.min() < 0:
        found = f"{labels.dtype} of shape {tuple(labels.shape)}"
        raise ValueError(f"{path} should hold {len(latents)} integer labels from 0, but holds {found}")
    return latents, labels
