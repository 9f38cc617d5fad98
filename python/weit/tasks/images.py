"""Classification of the user's own images, from files: splits, augmentation, workers."""

from __future__ import annotations

import multiprocessing
import os
from math import log
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2

from weit.engine.processes import usable_cores
from weit.tasks.classification import Classification, stratified
from weit.tasks.image_folder import ImageClasses, read_folder
from weit.tasks.saved_dataset import SavedImages, read_saved

AUGMENTS = ("crop", "randaugment", "none")
_HELD_OUT = 6  # one image in so many for each of validation and test; the fewest of a class that is split
_SMALL = 1000  # images that are read before worker processes are worth starting
_MOST_WORKERS = 8
# ImageNet's mean and deviation of each channel: near enough for photographs of anything, without reading them all.
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

Source = ImageClasses | SavedImages


class Images(Dataset[Any]):
    """The images ``items`` of ``source`` as tensors; items (float32 ``(3, size, size)``, class)."""

    def __init__(self, source: Source, items: np.ndarray, transform: v2.Transform) -> None:
        self.source, self.items, self.transform = source, items, transform

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        image, label = self.source[self.items[index]]
        return self.transform(image), label


def load(
    kind: str, root: Path | None, *, image_size: int = 64, augment: str = "crop", workers: int | None = None
) -> Classification:
    """The images at ``root``, in splits that are always the same.

    Where validation or test data are missing, a sixth of all images is taken for each, stratified by class.

    Args:
        kind: ``"folder"``: ``root/<class>/*.jpg`` (png, …), or such folders in ``root/train`` and, if there are any,
            ``root/validation`` (val, valid) and ``root/test``; ``"hf-dataset"``: a ``Dataset`` or ``DatasetDict`` that was
            saved to disk, with one column of images and one of class labels.
        image_size: side of the square that the model sees.
        augment: of the training images. ``"crop"``: a random part (8 % of the area or more), perhaps mirrored;
            ``"randaugment"``: two random operations on top (Cubuk et al. 2020); ``"none"``: the centre, as for evaluation.
        workers: processes that read images; by default up to 8, on cores that are idle.

    Raises:
        ValueError: an option out of range, a file that is no image, classes that differ between splits, too few images of
            a class or too few classes. While training: an image that is damaged.
        FileNotFoundError: no folder, no class folders, or one without images.
        RuntimeError: datasets is not installed.
    """
    if root is None:
        raise ValueError(f"data {kind} needs root, the folder of the images")
    if image_size < 8:
        raise ValueError(f"image_size must be at least 8, got {image_size}")
    if augment not in AUGMENTS:
        raise ValueError(f"augment must be one of {', '.join(AUGMENTS)}, got {augment!r}")
    if workers is not None and workers < 0:
        raise ValueError(f"workers must be 0 or more, got {workers}")
    found: dict[str, Source] = dict(read_folder(root) if kind == "folder" else read_saved(root))
    classes = found["train"].classes
    _check_classes(found, root)
    training, evaluation = _transforms(image_size, augment)
    train, validation, test = (
        Images(source, items, training if split == "train" else evaluation)
        for split, (source, items) in _divide(found, root).items()
    )
    if workers is None:
        workers = _idle_cores() if len(train) >= _SMALL else 0
    # Batch size and order are the trainer's.
    loader: DataLoader[Any] = DataLoader(train, num_workers=workers, pin_memory=torch.cuda.is_available())
    model_args = {"img_size": image_size, "in_chans": 3, "num_classes": len(classes)}
    options = {"image_size": image_size, "augment": augment}
    return Classification(kind, loader, validation, test, model_args, _patch_size(image_size), workers, options=options)


def _check_classes(found: dict[str, Source], root: Path) -> None:
    classes = found["train"].classes
    if len(classes) < 2:
        raise ValueError(f"{root} must have two classes or more, but has only {', '.join(classes) or 'none'}")
    for split, source in found.items():
        only = [name for name in source.classes if name not in classes]
        missing = [name for name in classes if name not in source.classes]
        if only or missing:
            what = f"only {split} has {only[0]}" if only else f"{split} has no {missing[0]}"
            raise ValueError(f"{root} must have the same classes in every split, but {what}")
        if source.classes != classes:
            raise ValueError(f"{root} must have its classes in the same order in every split, but {split} has not")


def _divide(found: dict[str, Source], root: Path) -> dict[str, tuple[Source, np.ndarray]]:
    """For train, validation and test, in this order, whose images they are and which, shuffled."""
    whole = found["train"]
    rest, count = np.arange(len(whole.labels)), -(-len(whole.labels) // _HELD_OUT)
    parts: dict[str, tuple[Source, np.ndarray]] = {}
    for split in ("test", "validation"):
        if split in found:
            parts[split] = found[split], stratified(found[split].labels, len(found[split]))[0]
        else:
            taken, left = stratified(whole.labels[rest], count)
            parts[split], rest = (whole, rest[taken]), rest[left]
    parts["train"] = whole, rest
    shares = np.stack([np.bincount(whole.labels[items], minlength=len(whole.classes))
                       for source, items in parts.values() if source is whole])  # fmt: skip
    if len(shares) > 1 and not shares.all():
        label = int(shares.min(0).argmin())
        raise ValueError(
            f"{root}: class {whole.classes[label]} has too few images to be split, {shares[:, label].sum()}; "
            f"it needs {_HELD_OUT}, or validation and test data of its own"
        )
    return {split: parts[split] for split in ("train", "validation", "test")}


def _transforms(size: int, augment: str) -> tuple[v2.Transform, v2.Transform]:
    """For training and for evaluation: PIL image → float32 ``(3, size, size)``."""
    to_tensor = [v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(_MEAN, _STD), v2.ToPureTensor()]
    # The usual crop of 224 from 256: a random crop shows things larger than the whole image does (Touvron et al. 2019).
    evaluation = v2.Compose([v2.Resize(round(size * 256 / 224)), v2.CenterCrop(size), *to_tensor])
    if augment == "none":
        return evaluation, evaluation
    operations = [v2.RandAugment()] if augment == "randaugment" else []
    return v2.Compose([v2.RandomResizedCrop(size), v2.RandomHorizontalFlip(), *operations, *to_tensor]), evaluation


def _patch_size(size: int) -> int:
    """The divisor of ``size`` that cuts an image into as near to 8 x 8 patches as can be."""
    return min((each for each in range(1, size + 1) if size % each == 0), key=lambda each: abs(log(8 * each / size)))


def _idle_cores() -> int:
    """Cores that training leaves to each of its processes for reading images, up to 8."""
    if multiprocessing.current_process().daemon:  # which may have no children
        return 0
    training = 1 if torch.cuda.is_available() else torch.get_num_threads()
    return max(0, min(_MOST_WORKERS, usable_cores() // int(os.environ.get("LOCAL_WORLD_SIZE", 1)) - training))
