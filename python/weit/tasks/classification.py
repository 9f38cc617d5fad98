"""Image classification: data in memory with fixed splits, the loss and the metric."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from weit.tasks.idx import read_idx

_FASHION_MNIST_FOLDERS = Path("/usr/share/datasets/fashion-mnist"), Path("/usr/local/share/datasets/fashion-mnist")


@dataclass(frozen=True)
class Task:
    """A data set cut into train, validation and test, and what a model for it needs.

    The splits hold images ``(n, C, H, W)`` float32 and labels ``(n,)`` int64 in memory, and are shuffled, so that the
    first few of them are a fair sample. ``model_args`` go to ``create_model``, ``patch_size`` is what suits a ViT here,
    and training minimises ``loss(logits, labels)``.
    """

    name: str
    train: TensorDataset
    validation: TensorDataset
    test: TensorDataset
    model_args: dict[str, int]
    patch_size: int
    loss: Callable[[Tensor, Tensor], Tensor] = F.cross_entropy

    def evaluate(self, model: nn.Module, dataset: TensorDataset, batch_size: int = 512) -> dict[str, float]:
        """``{"accuracy", "loss"}`` of ``model`` over ``dataset``, in evaluation mode; its mode is put back after."""
        was_training = model.training
        model.eval()
        correct = total_loss = 0.0
        device = next(model.parameters()).device
        with torch.inference_mode():
            for start in range(0, len(dataset), batch_size):
                images, labels = (part[start : start + batch_size].to(device) for part in dataset.tensors)
                logits = model(images)
                correct += float((logits.argmax(-1) == labels).sum())
                total_loss += float(self.loss(logits, labels)) * len(labels)
        model.train(was_training)
        return {"accuracy": correct / len(dataset), "loss": total_loss / len(dataset)}


def head(dataset: TensorDataset, count: int) -> TensorDataset:
    """The first ``count`` items of a data set in memory."""
    return TensorDataset(*(part[:count] for part in dataset.tensors))


def load_task(name: str, root: str | Path | None = None) -> Task:
    """The task ``name``; its splits are stratified by label and shuffled with seed 0, so always the same.

    Args:
        name: ``"digits"`` (scikit-learn's 1,797 grey 8x8 images: 1,047 / 300 / 450 for train / validation / test) or
            ``"fashion-mnist"`` (grey 28x28 images: 50,000 / 10,000, and the data set's own 10,000 for test).
        root: folder of Fashion-MNIST's four gzipped IDX files; by default where Debian's package puts them.

    Raises:
        ValueError: unknown name, or a damaged or foreign file.
        OSError: files that are not there.
        RuntimeError: scikit-learn, which carries the digits, is not installed.
    """
    if name == "digits":
        return _digits()
    if name == "fashion-mnist":
        return _fashion_mnist(find_fashion_mnist(root))
    raise ValueError(f'data must be "digits" or "fashion-mnist", got {name!r}')


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


def _digits() -> Task:
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise RuntimeError(f"the digits come with scikit-learn: pip install weit[demo] ({error})") from error
    data = load_digits()
    images, labels = data.images.astype(np.float32)[:, None], data.target.astype(np.int64)
    test, rest = _split(labels, 450)
    validation, train = (rest[part] for part in _split(labels[rest], 300))
    return _task("digits", 2, *((images[part], labels[part]) for part in (train, validation, test)))


def _fashion_mnist(folder: Path) -> Task:
    images, labels = _read_pair(folder, "train")
    validation, train = _split(labels, len(labels) // 6)
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


def _split(labels: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
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


def _task(name: str, patch_size: int, *splits: tuple[np.ndarray, np.ndarray]) -> Task:
    """A task of its three splits, images scaled by the mean and standard deviation of the training split."""
    mean, std = splits[0][0].mean(dtype=np.float64), splits[0][0].std(dtype=np.float64)
    train, validation, test = (
        TensorDataset(torch.from_numpy((images - mean) / std).float(), torch.from_numpy(labels))
        for images, labels in splits
    )
    side = splits[0][0].shape[-1]
    return Task(name, train, validation, test, {"img_size": side, "in_chans": 1, "num_classes": 10}, patch_size)
