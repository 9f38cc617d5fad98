"""What was timed, kept on disk: the winner and all seconds by key, in one file of JSON that processes share.

The file is ``$WEIT_CACHE``, by default ``tune.json`` in ``weit`` in the user's cache folder. It may be copied to a machine
with the same device and versions. What ``weit_kernels/configs/*.json`` holds is read where the user's cache knows nothing.
"""

from __future__ import annotations

import functools
import json
import math
import os
import tempfile
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from itertools import count
from pathlib import Path
from typing import Any

FORMAT = 1
SHIPPED = Path(__file__).parent / "configs"


@dataclass(frozen=True)
class Entry:
    """A winner, and the median seconds of everything that was timed against it."""

    winner: str
    seconds: dict[str, float]

    @staticmethod
    def checked(value: Any) -> Entry:
        """An entry from JSON; ``ValueError`` where it is none."""
        if not (isinstance(value, dict) and set(value) == {"winner", "seconds"} and isinstance(value["seconds"], dict)):
            raise ValueError("an entry must have a winner and seconds")
        winner, seconds = value["winner"], value["seconds"]
        if not all(isinstance(s, (int, float)) and math.isfinite(s) and s >= 0 for s in seconds.values()):
            raise ValueError("seconds must be finite numbers")
        if not isinstance(winner, str) or winner not in seconds:
            raise ValueError("the winner must be among what was timed")
        return Entry(winner, {name: float(s) for name, s in seconds.items()})


class Cache:
    """Entries by key in one JSON file, which other processes read and write too, over read-only ``fallbacks``."""

    def __init__(self, path: Path, fallbacks: Iterable[Path] = ()) -> None:
        self.path = path
        self._shipped: dict[str, Entry] = {}
        for file in fallbacks:
            self._shipped |= _read(file)
        self._entries = _read(path)

    def get(self, key: str) -> Entry | None:
        """The entry of ``key``, if there is one."""
        return self._entries.get(key) or self._shipped.get(key)

    def put(self, key: str, winner: str, seconds: Mapping[str, float]) -> None:
        """Keep an entry, in this process and on disk, without losing what others wrote meanwhile.

        A disk that cannot be written costs one warning: the entry then lasts as long as the process.
        """
        entry = Entry(winner, dict(seconds))
        self._entries[key] = entry
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with _locked(self.path.with_name(self.path.name + ".lock")):
                _set_foreign_aside(self.path)
                self._entries = {**self._entries, **_read(self.path), key: entry}
                _write(self.path, self._entries)
        except OSError as error:
            warn_once(f"weit: tuning results cannot be kept in {self.path}: {error}")


def _read(path: Path) -> dict[str, Entry]:
    """The entries of a file but for damaged ones; none where it is not ours. Either costs a warning."""
    try:
        entries = _parsed(path)
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except (OSError, ValueError) as error:  # JSON and Unicode errors are ValueErrors
        warn_once(f"weit: the tuning cache {path} is ignored: {error}")
        return {}
    good: dict[str, Entry] = {}
    for key, value in entries.items():
        try:
            good[key] = Entry.checked(value)
        except (ValueError, OverflowError) as error:  # the second: an integer beyond all floats
            warn_once(f"weit: an entry of the tuning cache {path} is ignored: {error}")
    return good


def _parsed(path: Path) -> dict[str, Any]:
    """What a file holds by key; ``ValueError`` where it is not ours."""
    data = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(data, dict) or data.get("format") != FORMAT or not isinstance(data.get("entries"), dict):
        raise ValueError(f"not a tuning cache of format {FORMAT}")
    return data["entries"]


def _set_foreign_aside(path: Path) -> None:
    """Rename a file that is not ours, but somebody's or a later version's, before ours takes its name."""
    try:
        _parsed(path)
    except FileNotFoundError:
        pass
    except ValueError:
        names = (path.with_name(f"{path.name}.bad{i or ''}") for i in count())
        os.replace(path, next(name for name in names if not name.exists()))


def _write(path: Path, entries: Mapping[str, Entry]) -> None:
    text = json.dumps({"format": FORMAT, "entries": {k: asdict(e) for k, e in sorted(entries.items())}}, indent=1)
    handle, beside = tempfile.mkstemp(prefix=path.name + ".", suffix=".part", dir=path.parent)
    try:
        with open(handle, "w", encoding="utf-8") as file:
            file.write(text + "\n")
        os.replace(beside, path)
    except BaseException:
        with suppress(OSError):
            os.unlink(beside)
        raise


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold a lock between processes; without one where the system has no ``flock``."""
    try:
        import fcntl
    except ImportError:
        yield
        return
    with open(path, "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@functools.cache
def warn_once(message: str) -> None:
    """Warn of a message the first time that it comes."""
    warnings.warn(message, RuntimeWarning, stacklevel=2)


def cache() -> Cache:
    """The cache of this process, for the ``WEIT_CACHE`` of the moment."""
    return _cache(Path(os.environ.get("WEIT_CACHE") or cache_folder() / "tune.json").expanduser())


def cache_folder() -> Path:
    """This package's, in the user's cache folder."""
    try:
        folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    except RuntimeError:  # a user whom the system does not know, and no HOME: a container's, mostly
        folder = Path(tempfile.gettempdir(), f"cache-{os.getuid()}")
    return folder / "weit"


@functools.cache
def _cache(path: Path) -> Cache:
    return Cache(path, sorted(SHIPPED.glob("*.json")))
