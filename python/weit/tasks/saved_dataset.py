"""Images with labels from a Hugging Face data set on disk; nothing is downloaded, unpickled or executed."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch.utils.data import Dataset

from weit.tasks.image_folder import name_splits, read_rgb


class SavedImages(Dataset[Any]):
    """One split of such a data set; items (image in RGB, class).

    Attributes:
        classes: their names.
        labels: class of each image, int64 ``(n,)``.

    Raises:
        ValueError: no image column or no column of class labels, or several; no rows; rows without a label.
    """

    def __init__(self, split: Any, name: str) -> None:
        from datasets import ClassLabel
        from datasets import Image as ImageFeature

        image, label = _column(split, ImageFeature, name), _column(split, ClassLabel, name)
        self.classes: list[str] = split.features[label].names
        rows = split.with_format(None).select_columns([image, label])
        self.labels = np.array([-1 if each is None else each for each in rows[label][:]], np.int64)
        if not len(self.labels):
            raise ValueError(f"{name} holds no images")
        if self.labels.min() < 0 or self.labels.max() >= len(self.classes):
            found = f"labels from {self.labels.min()} to {self.labels.max()}"
            raise ValueError(f"{name} must have a label from 0 to {len(self.classes) - 1} in every row, got {found}")
        # Decoded here: the library's own decoder would fetch an image whose path is an address.
        self._rows, self._image, self._name = rows.cast_column(image, ImageFeature(decode=False)), image, name

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        stored = self._rows[int(index)][self._image] or {"bytes": None, "path": None}
        file = stored["path"] or "" if stored["bytes"] is None else io.BytesIO(stored["bytes"])
        return read_rgb(file, f"image {index} of {self._name}"), int(self.labels[index])


def read_saved(root: Path) -> dict[str, SavedImages]:
    """What there is of ``train``, ``validation`` and ``test`` in a data set or dictionary of them that was saved to disk.

    Raises:
        FileNotFoundError: there is no such folder.
        ValueError: it holds no whole data set, or no ``train``; see also ``SavedImages``.
        RuntimeError: datasets is not installed.
    """
    try:
        from datasets import DatasetDict, load_from_disk
    except ImportError as error:
        raise RuntimeError(f"data hf-dataset needs datasets: pip install .[images] ({error})") from error
    if not root.is_dir():
        raise FileNotFoundError(f"root is not a folder: {root}")
    try:
        saved = load_from_disk(str(root))
    except (LookupError, OSError, TypeError, ValueError) as error:  # its files are JSON and Arrow
        raise ValueError(f"{root} holds no whole data set as datasets.save_to_disk writes it: {error}") from error
    if not isinstance(saved, DatasetDict):
        return {"train": SavedImages(saved, str(root))}
    found = name_splits(saved, root)
    if "train" not in found:
        raise ValueError(f"{root} must have a split train, but has {', '.join(saved) or 'none'}")
    return {split: SavedImages(saved[name], f"{root}/{name}") for split, name in found.items()}


def _column(split: Any, kind: type, name: str) -> str:
    found = [column for column, feature in split.features.items() if isinstance(feature, kind)]
    if len(found) != 1:
        columns = ", ".join(f"{column}: {type(feature).__name__}" for column, feature in split.features.items())
        raise ValueError(f"{name} must have one column of type {kind.__name__}, but has {columns}")
    return found[0]
