"""Folders of images: a folder a class, all classes together or in a folder for each split."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError
from torchvision.datasets import ImageFolder
from torchvision.datasets.folder import IMG_EXTENSIONS

_SPLITS = {"train": ("train",), "validation": ("validation", "val", "valid"), "test": ("test",)}
# What Windows leaves in folders that were looked at, Synology's thumbnails, and what macOS adds to archives.
_LITTER = ("Thumbs.db", "desktop.ini", "@eaDir", "__MACOSX")
_LOOKED_AT = 2000  # files whose headers are read before training, spread evenly; 0.1 ms each


class UnreadableImage(ValueError):
    """Something that should be an image is none that can be read.

    A ``DataLoader`` raises the error of a worker process anew, with the worker's traceback as its message; the last line of
    that is the message it had.
    """

    def __init__(self, message: str) -> None:
        super().__init__(message.strip().splitlines()[-1].removeprefix(f"{__name__}.{type(self).__name__}: "))


class ImageClasses(ImageFolder):
    """The images ``root/<class>/**/*.jpg`` (png, …), classes by name; items (image in RGB, class).

    Hidden files and folders and those with thumbnails are skipped.

    Attributes:
        labels: class of each image, int64 ``(n,)``.

    Raises:
        FileNotFoundError: no class folders, or one without images.
        ValueError: a file that is no image; the content of up to 2,000 is looked at.
    """

    def __init__(self, root: Path) -> None:
        base = str(root.expanduser())
        super().__init__(base, loader=read_rgb, is_valid_file=partial(_is_image, base), allow_empty=True)
        self.labels = np.array(self.targets, np.int64)
        for name, count in zip(self.classes, np.bincount(self.labels, minlength=len(self.classes)), strict=True):
            if not count:
                raise FileNotFoundError(f"class folder {root / name} holds no images ({', '.join(IMG_EXTENSIONS)})")
        for path, _ in self.samples[:: -(-len(self.samples) // _LOOKED_AT)]:
            with _opened(path, path):
                pass

    def find_classes(self, directory: str) -> tuple[list[str], dict[str, int]]:
        classes = _subfolders(Path(directory))
        if not classes:
            raise FileNotFoundError(f"{directory} has no class folders")
        return classes, {name: label for label, name in enumerate(classes)}


def read_folder(root: Path) -> dict[str, ImageClasses]:
    """What there is of ``train``, ``validation`` and ``test``; all images are ``train`` where they are not split yet.

    Raises:
        FileNotFoundError, ValueError: see ``ImageClasses``; also a folder that is not there, or splits without ``train``.
    """
    if not root.is_dir():
        raise FileNotFoundError(f"root is not a folder: {root}")
    names = _subfolders(root)
    found = name_splits(names, root)
    only_splits = bool(names) and set(names) == set(found.values())
    if only_splits and "train" not in found:
        raise FileNotFoundError(f"{root} has {' and '.join(names)}, but no folder train")
    if only_splits or ("train" in found and _subfolders(root / "train")):  # a class may well be called train
        return {split: ImageClasses(root / name) for split, name in found.items()}
    return {"train": ImageClasses(root)}


def name_splits(names: Collection[str], root: Path) -> dict[str, str]:
    """Split → what it is called among ``names``; ``ValueError`` if two of them are the same split."""
    found = {}
    for split, known in _SPLITS.items():
        there = [name for name in known if name in names]
        if len(there) > 1:
            raise ValueError(f"{root} must have one {split} split, but has {' and '.join(there)}")
        if there:
            found[split] = there[0]
    return found


def read_rgb(file: str | BinaryIO, name: str | None = None) -> Image.Image:
    """The image in ``file``, upright and in RGB; ``UnreadableImage`` says its ``name``, by default its path."""
    with _opened(file, name or str(file)) as image:
        ImageOps.exif_transpose(image, in_place=True)
        return image.convert("RGB")


@contextmanager
def _opened(file: str | BinaryIO, name: str) -> Iterator[Image.Image]:
    try:
        with Image.open(file) as image:
            if image.mode.startswith(("I", "F")):  # Pillow would clip them to white
                raise ValueError(f"its pixels have more than 8 bits a channel (mode {image.mode})")
            yield image
    except Exception as error:  # Pillow's readers raise whatever a damaged file leads them to
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())
        if isinstance(error, UnidentifiedImageError):
            reason = "its content is of no known format"
        raise UnreadableImage(f"{name} cannot be read as an image: {reason}") from error


def _is_litter(name: str) -> bool:
    return name.startswith(".") or name in _LITTER


def _is_image(root: str, path: str) -> bool:
    if any(map(_is_litter, path[len(root) :].split(os.sep))):  # folders above the root may be hidden
        return False
    if not path.lower().endswith(IMG_EXTENSIONS):
        raise ValueError(f"{path} is no image ({', '.join(IMG_EXTENSIONS)}); take it out of the class folder")
    return True


def _subfolders(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.is_dir() and not _is_litter(path.name))
