"""The files of a template bank, and what is read from them if they are whole."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor

from weit.fields import check_field, field, read_object

FORMAT, VERSION = "weit-bank", 1
FILES = CONFIG, TEMPLATES, SOURCE = "config.json", "bank.safetensors", "source.safetensors"
"""What the folder of a bank holds."""


class Content(NamedTuple):
    """What the files hold; ``source`` is ``None`` for a bank without one."""

    templates: dict[str, Tensor]
    layout: str
    relative_error: dict[str, float]
    source: dict[str, Tensor] | None
    source_config: dict[str, Any]
    head_dims: list[int]


def read_files(directory: Path) -> Content:
    """Read a bank's folder.

    Raises:
        ValueError: a file is damaged or somebody else's. OSError: it cannot be read.
    """
    config = read_object(directory / CONFIG)
    if (config.get("format"), config.get("version")) != (FORMAT, VERSION):
        raise ValueError(f"{CONFIG} is not of format {FORMAT!r}, version {VERSION}")
    # Banks of earlier versions have no hashes and do not say their heads.
    written = field(config, "sha256", dict) if "sha256" in config else {}
    heads = [] if config.get("head_dims") is None else field(config, "head_dims", list)
    shapes, errors = field(config, "templates", dict), field(config, "relative_error", dict)
    has_source = config.get("source", "") is not None
    source_config = field(config, "source", dict) if has_source else {}
    templates = _load(directory / TEMPLATES, written.get(TEMPLATES))
    if {role: list(tensor.shape) for role, tensor in templates.items()} != shapes:
        raise ValueError(f"{TEMPLATES} and {CONFIG} name other roles or shapes")
    return Content(
        {role: templates[role] for role in shapes},
        field(config, "layout", str),
        {role: float(check_field(error, f"'relative_error' of {role!r}", float)) for role, error in errors.items()},
        _load(directory / SOURCE, written.get(SOURCE)) if has_source else None,
        source_config,
        [check_field(size, "each of 'head_dims'", int) for size in heads],
    )


def check_finite(name: str, tensors: Mapping[str, Tensor]) -> None:
    """Raise for NaN; for infinity too, but in a source, whose buffers may hold it: a mask of attention does."""
    for key, tensor in tensors.items():
        if tensor.is_floating_point() and (tensor.isnan() if name == SOURCE else ~tensor.isfinite()).any():
            raise ValueError(f"{name}: {key!r} holds NaN{'' if name == SOURCE else ' or infinity'}")


def _load(path: Path, written: str | None) -> dict[str, Tensor]:
    """The tensors in a file; ``written``: its SHA-256, if that is known."""
    # Not load_file: its tensors are views of the mapped file, which change or crash when the file is
    # replaced.
    content = path.read_bytes()
    if written is not None and hashlib.sha256(content).hexdigest() != written:
        raise ValueError(f"{path.name} holds other bytes than were written")
    try:
        tensors = safetensors.torch.load(content)
    except SafetensorError as error:
        raise ValueError(f"{path.name} is damaged: {error}") from error
    check_finite(path.name, tensors)
    return tensors
