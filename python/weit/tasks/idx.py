"""Reads gzipped IDX files, the format MNIST and Fashion-MNIST come in, without trusting them."""

from __future__ import annotations

import gzip
import math
import zlib
from pathlib import Path

import numpy as np

_UNSIGNED_BYTE = 0x08
_LARGEST = (
    1 << 31
)  # bytes of content: far above any MNIST-like file, and a bound on what a foreign file can make us read


def read_idx(path: str | Path) -> np.ndarray:
    """The unsigned-byte array in a gzipped IDX file.

    Raises:
        OSError: the file cannot be opened.
        ValueError: not gzip, not IDX, another element type, or shorter or longer than its header says.

    Source: the format's description at the end of LeCun, Cortes and Burges, "The MNIST database".
    """
    path = Path(path)
    try:
        with gzip.open(path, "rb") as file:
            magic = file.read(4)
            if len(magic) < 4 or magic[:2] != b"\0\0" or magic[2] != _UNSIGNED_BYTE or magic[3] == 0:
                raise ValueError(f"{path} is not an IDX file of unsigned bytes: it starts with {magic.hex(' ')}")
            dimensions = file.read(4 * magic[3])
            if len(dimensions) < 4 * magic[3]:
                raise ValueError(f"{path} is truncated: its header ends after {4 + len(dimensions)} bytes")
            shape = tuple(int(size) for size in np.frombuffer(dimensions, ">u4"))
            size = math.prod(shape)
            if size > _LARGEST:
                raise ValueError(f"{path} claims {size} bytes of shape {shape}: not a data set this reads")
            content = file.read(size + 1)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise ValueError(f"{path} is damaged or not gzip: {error}") from error
    if len(content) != size:
        found = f"only {len(content)}" if len(content) < size else f"more than {size}"
        raise ValueError(f"{path} should hold {size} bytes of shape {shape}, but holds {found}")
    return np.frombuffer(content, np.uint8).reshape(shape)
