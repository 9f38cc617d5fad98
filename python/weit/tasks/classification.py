"""Image classification: images with labels in fixed splits, the loss and the metric."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, Dataset, Subset, TensorDataset

from weit.engine import Data
from weit.engine.objective import Loss
from weit.tasks.idx import read_idx
from weit.tasks.task import Metric, Size, Task, check_split, evaluating

OWN_IMAGES = ("folder", "hf-dataset")
"""Data that are the user's own images, which are brought to a size."""

_FASHION_MNIST_FOLDERS = Path("/usr/share/datasets/fashion-mnist"), Path("/usr/local/share/datasets/fashion-mnist")


_ACCURACY = Metric("accuracy", "accuracy, %", scale=100.0, digits=1)
_QUICK = 2000  # items that a point of a learning curve is measured on
_FETCHED = 64  # items at once where they are read from files: workers hold several batches


@dataclass(frozen=True)
class Classification(Task):
    """Images with labels.

    The splits hold images ``(C, H, W)`` float32 and labels int64, and are shuffled, so that the first few of them are a
    fair sample.

    Attributes:
        train: the training split, or a data loader over it.
        validation, test: the other splits.
        model_args: arguments of ``create_model`` that follow from the images.
        patch_size: what suits a ``vit`` here.
        workers: processes that fetch the items of validation and test where these are not in memory.
    """

    name: str
    train: Data
    validation: Dataset[Any]
    test: Dataset[Any]
    model_args: dict[str, int]
    patch_size: int
    workers: int = 0
    family: str = "classification"
    model: str = "vit"
    metrics: tuple[Metric, ...] = (_ACCURACY,)
    loss: Loss = F.cross_entropy
    distance: Loss | None = None
    options: Mapping[str, Any] = field(default_factory=dict)

    def arguments(self, model: str, size: Size) -> dict[str, Any]:
        if model in ("dit", "mlp", "transformer"):
            raise ValueError(f"model must classify images, such as vit or resnet, got {model!r}")
        patches = {"patch_size": self.patch_size} if model == "vit" else {}
        return {**self.model_args, **patches, **size}

    def evaluate(self, model: nn.Module, split: str, *, quick: bool = False, batch_size: int = 512) -> dict[str, float]:
        """``{"accuracy", "loss"}``; ``quick``: of the first 2,000 images."""
        check_split(split)
        dataset = getattr(self, split)
        count = min(len(dataset), _QUICK) if quick else len(dataset)
        correct = total_loss = 0.0
        with evaluating(model) as device:
            for images, labels in _batches(dataset, count, batch_size, self.workers):
                logits, labels = model(images.to(device)), labels.to(device)
                correct += float((logits.argmax(-1) == labels).sum())
                total_loss += float(self.loss(logits, labels)) * len(labels)
        return {"accuracy": correct / count, "loss": total_loss / count}


def _batches(dataset: Dataset[Any], count: int, size: int, workers: int) -> Iterator[Any]:
    if isinstance(dataset, TensorDataset):
        for start in range(0, count, size):
            yield dataset[start : min(start + size, count)]
    else:
        yield from DataLoader(Subset(dataset, range(count)), min(size, _FETCHED), num_workers=workers)


def load(name: str, root: Path | None = None, **options: Any) -> Classification:
    """The data ``name``; its splits are stratified by label and shuffled with seed 0, so always the same.

    Args:
        name: ``"digits"`` (scikit-learn's 1,797 grey 8x8 images: 1,047 / 300 / 450 for train / validation / test),
            ``"fashion-mnist"`` (grey 28x28 images: 50,000 / 10,000, and the data set's own 10,000 for test), or the user's
            own images, ``"folder"`` or ``"hf-dataset"``: see ``weit.tasks.images.load``.
        root: folder of Fashion-MNIST's four gzipped IDX files, by default where Debian's package puts them; or of the
            user's own images.
        options: for the user's own images: image_size, augment, workers.

    Raises:
        ValueError: unknown name, options for images of a fixed size, a damaged or foreign file; see also there.
        OSError: files that are not there.
        RuntimeError: a library is not installed: scikit-learn, which carries the digits, or torchvision or datasets.
    """
    if name in OWN_IMAGES:
        return _own_images(name, root, options)
    if name not in ("digits", "fashion-mnist"):
        raise ValueError(
            f'data must be "digits" or "fashion-mnist", or for your own images "folder" or "hf-dataset", got {name!r}'
        )
    if options:
        raise ValueError(f"{' and '.join(options)} must be left out, {name} are in memory as they are")
    return _digits() if name == "digits" else _fashion_mnist(find_fashion_mnist(root))


def find_fashion_mnist(root: str | Path | None = None) -> Path:
    """The folder that holds Fashion-MNIST: ``root``, or the first usual place; ``FileNotFoundError`` if none does."""
    folders = _FASHION_MNIST_FOLDERS if root is None else (Path(root),)
    for folder in folders:
        if (folder / "train-images-idx3-ubyte.gz").is_file():
            return folder
    raise FileNotFoundError(
        f"no train-images-idx3-ubyte.gz in {' or '.join(map(str, folders))}: "
        "install Debian's dataset-fashion-mnist, or give the folder of its four files as root"
    )


def _own_images(kind: str, root: Path | None, options: dict[str, Any]) -> Classification:
    try:
        from weit.tasks import images
    except (ImportError, RuntimeError) as error:  # the latter beside a torch that torchvision is not built for
        needed = "torchvision, built for this torch: from the index that torch came from, or pip install .[images]"
        raise RuntimeError(f"data {kind} needs {needed} ({error})") from error
    return images.load(kind, root, **options)


def _digits() -> Classification:
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise RuntimeError(f"the digits come with scikit-learn: pip install .[demo] ({error})") from error
    data = load_digits()
    images, labels = data.images.astype(np.float32)[:, None], data.target.astype(np.int64)
    test, rest = stratified(labels, 450)
    validation, train = (rest[part] for part in stratified(labels[rest], 300))
    return _task("digits", 2, *((images[part], labels[part]) for part in (train, validation, test)))


def _fashion_mnist(folder: Path) -> Classification:
    images, labels = _read_pair(folder, "train")
    validation, train = stratified(labels, len(labels) // 6)
    splits = [(images[part], labels[part]) for part in (train, validation)]
    return _task("fashion-mnist", 4, *splits, _read_pair(folder, "t10k"))


def _read_pair(folder: Path, prefix: str) -> tuple[np.ndarray, np.ndarray]:
    image_file, label_file = folder / f"{prefix}-images-idx3-ubyte.gz", folder / f"{prefix}-labels-idx1-ubyte.gz"
    images, labels = read_idx(image_file), read_idx(label_file)
    if images.ndim != 3 or images.shape[1:] != (28, 28) or len(images) == 0:
        raise ValueError(f"{image_file} should hold images of 28x28, but holds shape {images.shape}")
    if labels.shape != images.shape[:1] or labels.max() > 9:
        found = f"shape {labels.shape}, values up to {labels.max(initial=0)}"
        raise ValueError(f"{label_file} should hold {len(images)} labels from 0 to 9, but holds {found}")
    return images.astype(np.float32)[:, None], labels.astype(np.int64)


def stratified(labels: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Indices of ``count`` items with every label in its share, and of the rest; both shuffled, always alike."""
    random = np.random.default_rng(0)
    order = random.permutation(len(labels))
    # Item r of a label's n items stands at (r + 1/2) / n: in this order every stretch holds all labels in proportion.
    position = np.empty(len(labels))
    for label in np.unique(labels):
        members = order[labels[order] == label]
        position[members] = (np.arange(len(members)) + 0.5) / len(members)
    dealt = order[np.argsort(position[order], kind="stable")]
    return random.permutation(dealt[:count]), random.permutation(dealt[count:])


def _task(name: str, patch_size: int, *splits: tuple[np.ndarray, np.ndarray]) -> Classification:
    """A task of its three splits, images scaled by the mean and standard deviation of the training split."""
    mean, std = splits[0][0].mean(dtype=np.float64), splits[0][0].std(dtype=np.float64)
    train, validation, test = (
        TensorDataset(torch.from_numpy((images - mean) / std).float(), torch.from_numpy(labels))
        for images, labels in splits
    )
    side = splits[0][0].shape[-1]
    return Classification(
        name, train, validation, test, {"img_size": side, "in_chans": 1, "num_classes": 10}, patch_size
    )
