"""Dense models on disk: a folder with ``model.safetensors`` and the ``config.json`` that rebuilds the model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from weit.fields import field, read_object
from weit.files import atomic_dir, digest
from weit.models.create import create_model

_FORMAT = "weit-model"
FILES = _CONFIG, _WEIGHTS = "config.json", "model.safetensors"
"""What the folder of a model holds."""


def save_model(model: nn.Module, folder: str | Path, name: str, arguments: dict[str, Any], **notes: Any) -> None:
    """Write ``model``, which ``create_model(name, **arguments)`` builds, to ``folder``, replacing an older one whole.

    ``notes`` (JSON) go into ``config.json`` too.

    Raises:
        OSError: the folder cannot be written, or holds something else.
    """
    with atomic_dir(folder) as temporary:
        write_model(model, temporary, name, arguments, **notes)


def write_model(model: nn.Module, folder: Path, name: str, arguments: dict[str, Any], **notes: Any) -> None:
    """What ``save_model`` writes, into a folder that is there and that nobody reads yet."""
    # Copies: safetensors refuses tensors that share memory, such as tied embeddings.
    whole = {key: value.contiguous().clone() for key, value in model.state_dict().items()}
    save_file(whole, folder / _WEIGHTS)
    config = {"format": _FORMAT, "model": name, "arguments": arguments, **notes}
    config["sha256"] = {_WEIGHTS: digest(folder / _WEIGHTS)}
    (folder / _CONFIG).write_text(json.dumps(config, indent=2) + "\n")


def load_model(folder: str | Path) -> tuple[nn.Module, dict[str, Any]]:
    """The model that ``save_model`` wrote to ``folder``, and its config: ``{"format", "model", "arguments", ...}``.

    Raises:
        OSError: no such folder or files.
        ValueError: damaged or foreign files.
    """
    folder = Path(folder)
    config_file, weights_file = folder / _CONFIG, folder / _WEIGHTS
    try:
        config = read_object(config_file)
        if field(config, "format", str) != _FORMAT:
            raise ValueError(f"its format is {config['format']!r}, expected {_FORMAT!r}")
        written = field(config, "sha256", dict) if "sha256" in config else {}  # folders of earlier versions have none
        model = create_model(field(config, "model", str), **field(config, "arguments", dict))
    except (ValueError, TypeError) as error:
        raise ValueError(f"{config_file} is damaged or not of this package: {error}") from error
    try:
        if _WEIGHTS in written and digest(weights_file) != written[_WEIGHTS]:
            raise ValueError("it holds other bytes than were written; save_model writes both")
        model.load_state_dict(load_file(weights_file))
    except (SafetensorError, RuntimeError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"{weights_file} is damaged or does not fit its config.json: {reason}") from error
    return model, config
