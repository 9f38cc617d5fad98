"""The folder of a comparison, told from anybody else's before anything in it is replaced."""

from __future__ import annotations

from pathlib import Path

from weit.files import atomic_write

_MARK = "weit-compare.json"


def check_folder(out: Path) -> None:
    """Raise ``FileExistsError`` unless ``out`` is new, empty or an earlier comparison's."""
    if out.exists() and not (out / _MARK).is_file() and (not out.is_dir() or any(out.iterdir())):
        raise FileExistsError(f"out must be new or the folder of an earlier comparison: {out} holds something else")


def open_folder(out: Path) -> None:
    """Make ``out`` a comparison's; errors as for ``check_folder``."""
    check_folder(out)
    atomic_write(out / _MARK, "{}\n")
