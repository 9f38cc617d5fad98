"""Image generation: class-conditional diffusion of small images, scored by denoising and by the images it makes."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from weit.engine.objective import Loss
from weit.files import atomic_write
from weit.tasks import classification, latents
from weit.tasks.diffusion import Noisy, sample
from weit.tasks.features import Judge
from weit.tasks.task import SPLITS, Metric, Size, Task, check_split, evaluating

DATA = ("fashion-mnist", "digits", "latents")
_DENOISING = Metric("loss", "denoising loss", higher=False, digits=4)
_FRECHET = Metric("frechet", "Fréchet distance", higher=False, digits=2)
_DENOISED, _SAMPLED = 384, 250  # images that a score is measured on


@dataclass(frozen=True)
class Generation(Task):
    """Images with labels, from -1 to 1, in noise.

    A model for it predicts the noise: (noisy ``(B, C, H, W)``, time steps ``(B,)``, labels ``(B,)``) → noise. The label
    after the last class stands for any class.

    Attributes:
        train, validation, test: the splits.
        model_args: arguments of ``create_model`` that follow from the images.
        patch_size: what suits a ``dit`` here.
    """

    name: str
    train: Noisy
    validation: Noisy
    test: Noisy
    model_args: dict[str, int]
    patch_size: int
    family: str = "generation"
    model: str = "dit"
    metrics: tuple[Metric, ...] = (_DENOISING, _FRECHET)
    loss: Loss = F.mse_loss
    distance: Loss | None = F.mse_loss

    def arguments(self, model: str, size: Size) -> dict[str, Any]:
        if model != self.model:
            raise ValueError(f'model must be "dit" to generate images, got {model!r}')
        return {**self.model_args, "patch_size": self.patch_size, **size}

    def evaluate(self, model: nn.Module, split: str, *, quick: bool = False, batch_size: int = 64) -> dict[str, float]:
        """``{"loss", "frechet"}``; ``quick``: without the latter.

        The loss is that of 384 held-out images at time steps over the whole range, in noise that is always the same. The
        distance is that of 250 images of all classes in turn, drawn without guidance in 20 steps, from all held-out ones.
        """
        check_split(split)
        (noisy, times, labels), noise = getattr(self, split).fixed(_DENOISED, SPLITS.index(split))
        parts = zip(*(tensor.split(batch_size) for tensor in (noisy, times, labels, noise)), strict=True)
        total = 0.0
        with evaluating(model) as device:
            for part in parts:
                *inputs, target = (tensor.to(device) for tensor in part)
                total += float(self.loss(model(*inputs), target)) * len(target)
        scores = {"loss": total / _DENOISED}
        if not quick:
            images = self.sample(model, torch.arange(_SAMPLED) % self.model_args["num_classes"])
            scores["frechet"] = self.judge.distance(images, split)
        return scores

    @cached_property
    def judge(self) -> Judge:
        """What the Fréchet distance is measured with; trained when first used."""
        real = {split: getattr(self, split).images for split in SPLITS}
        return Judge(self.train.images, real, self.model_args)

    def sample(
        self, model: nn.Module, labels: Sequence[int] | Tensor, *, steps: int = 20, guidance: float = 1.0, seed: int = 0
    ) -> Tensor:
        """Images ``(n, C, H, W)`` from -1 to 1 of the classes ``labels``; see ``weit.tasks.diffusion.sample``.

        Raises:
            ValueError: no labels, or one that is none; see also there.
        """
        classes, side = self.model_args["num_classes"], self.model_args["img_size"]
        labels = torch.as_tensor(labels)
        if labels.dim() != 1 or labels.is_floating_point() or not len(labels):
            raise ValueError(f"labels must be integers (n,), got {labels.dtype} of shape {tuple(labels.shape)}")
        if labels.min() < 0 or labels.max() > classes:
            found = f"labels from {int(labels.min())} to {int(labels.max())}"
            raise ValueError(f"labels must be from 0 to {classes}, which stands for any class, got {found}")
        shape = self.model_args["in_chans"], side, side
        return sample(model, labels.long(), shape, steps=steps, guidance=guidance, any_label=classes, seed=seed)

    def save_grid(
        self,
        model: nn.Module,
        path: str | Path,
        *,
        rows: int = 6,
        steps: int = 40,
        guidance: float = 2.0,
        seed: int = 0,
    ) -> None:
        """Write sampled images as a PNG: a column for each class.

        Raises:
            ValueError: latents, which are no images. OSError: ``path`` cannot be written.
        """
        from matplotlib.image import imsave

        if self.model_args["in_chans"] not in (1, 3):
            raise ValueError(f"images must have 1 or 3 channels to be shown, got {self.model_args['in_chans']}")

        classes, side = self.model_args["num_classes"], self.model_args["img_size"]
        images = self.sample(model, torch.arange(rows * classes) % classes, steps=steps, guidance=guidance, seed=seed)
        zoom = max(1, 64 // side)
        pixels = F.pad((images + 1) / 2, (1, 1, 1, 1), value=1.0).unflatten(0, (rows, classes))
        grid = pixels.permute(0, 3, 1, 4, 2).flatten(0, 1).flatten(1, 2)  # rows of pixels, columns of pixels, channels
        grid = grid.repeat_interleave(zoom, 0).repeat_interleave(zoom, 1)
        file = io.BytesIO()
        imsave(file, grid.expand(-1, -1, 3).numpy(), format="png")
        atomic_write(path, file.getvalue())


def load(name: str, root: Path | None = None) -> Generation:
    """The data ``name``, in the splits that classification has, with labels dropped from a tenth of the training items.

    Args:
        name: ``"fashion-mnist"``, ``"digits"``, or ``"latents"``: what an autoencoder made of images, in ``root``.
        root: as for classification; for latents see ``weit.tasks.latents``.

    Raises:
        ValueError: unknown name, or a damaged or foreign file.
        OSError: files that are not there.
        RuntimeError: diffusers, or for the digits scikit-learn, is not installed.
    """
    if name not in DATA:
        raise ValueError(f"data must be one of {', '.join(DATA)}, got {name!r}")
    if name == "latents":
        splits, arguments, patch_size = latents.read(root)
        mean, std = splits[0].tensors[0].mean(), splits[0].tensors[0].std()
        low, high = mean - 3 * std, mean + 3 * std  # they have no bounds of their own; few are beyond these
    else:
        task = classification.load(name, root)
        splits = [cast(TensorDataset, split) for split in (task.train, task.validation, task.test)]
        arguments, patch_size = task.model_args, task.patch_size
        low, high = splits[0].tensors[0].aminmax()
    any_label = arguments["num_classes"]
    train, validation, test = (Noisy(_scaled(split, low, high), any_label) for split in splits)
    return Generation(name, train, validation, test, arguments, patch_size)


def _scaled(split: TensorDataset, low: Tensor, high: Tensor) -> TensorDataset:
    images, labels = split.tensors
    return TensorDataset(((images - low) / (high - low) * 2 - 1).clamp(-1, 1), labels)
