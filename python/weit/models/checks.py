"""What the package's own models check of their sizes before they are built."""

from __future__ import annotations

from math import isfinite
from numbers import Real

from weit_kernels.shapes import as_int


def check_sizes(mlp_ratio: float, *, width: int, **sizes: int) -> int:
    """Hidden features of an MLP; raise `ValueError` unless all sizes are positive integers that go together.

    `patch_size`, where there is one, must divide `img_size`, and `head_dim` must divide `width`.
    """
    check_positive(**sizes, width=width)
    hidden = int(width * mlp_ratio) if isinstance(mlp_ratio, Real) and isfinite(mlp_ratio) else 0
    if hidden < 1:
        raise ValueError(f"mlp_ratio must leave at least one hidden feature, got {mlp_ratio!r} with width={width}")
    if "patch_size" in sizes and sizes["img_size"] % sizes["patch_size"]:
        patch_size, img_size = sizes["patch_size"], sizes["img_size"]
        raise ValueError(f"patch_size must divide img_size, got patch_size={patch_size}, img_size={img_size}")
    if "head_dim" in sizes and width % sizes["head_dim"]:
        raise ValueError(f"head_dim must divide width, got head_dim={sizes['head_dim']}, width={width}")
    return hidden


def check_positive(**sizes: int) -> None:
    """Raise `ValueError` unless all sizes are positive integers."""
    for name, size in sizes.items():
        number = as_int(size)
        if number is None or number < 1:
            raise ValueError(f"{name} must be a positive integer, got {size!r}")
