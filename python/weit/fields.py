"""Fields of a ``config.json``, which may be damaged or somebody else's: each is named if it is not what it should be."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

_KINDS = {dict: "an object", list: "a list", str: "a string", int: "an integer", float: "a number"}


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object in a file.

    Raises:
        ValueError: it holds nothing of the kind. OSError: it cannot be read.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path.name} is no JSON: {error}") from error
    if not isinstance(found, dict):
        raise ValueError(f"{path.name} must hold an object, got {_shown(found)}")
    return found


def field(config: Mapping[str, Any], name: str, kind: type) -> Any:
    """The field ``name`` of a ``config.json``, which must be there and of that ``kind``; an int will do for a float.

    Raises:
        ValueError: it is not there, or of another kind.
    """
    if name not in config:
        raise ValueError(f"config.json lacks {name!r}")
    return check_field(config[name], repr(name), kind)


def check_field(value: Any, name: str, kind: type) -> Any:
    """``value`` if it is of that ``kind``, as ``field``."""
    kinds = (int, float) if kind is float else kind
    if not isinstance(value, kinds) or isinstance(value, bool):
        raise ValueError(f"{name} in config.json must be {_KINDS[kind]}, got {_shown(value)}")
    return value


def _shown(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 40 else f"{text[:40]}…"
