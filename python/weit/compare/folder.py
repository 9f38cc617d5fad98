"""The folder of a comparison, told from anybody else's before anything in it is replaced."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

from weit.compare.config import CompareConfig
from weit.files import atomic_write

_MARK = "weit-compare.json"


def check_folder(out: Path) -> None:
    """Raise ``FileExistsError`` unless ``out`` is new, empty or an earlier comparison's."""
    if out.exists() and not (out / _MARK).is_file() and (not out.is_dir() or any(out.iterdir())):
        raise FileExistsError(f"out must be new or the folder of an earlier comparison: {out} holds something else")


def open_folder(config: CompareConfig) -> None:
    """Make ``config.out`` a comparison's; errors as for ``check_folder``."""
    check_folder(config.out)
    plain = {name: str(value) if isinstance(value, Path) else value for name, value in asdict(config).items()}
    atomic_write(config.out / _MARK, json.dumps(plain, indent=1) + "\n")
