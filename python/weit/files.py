"""Files that appear whole or not at all: written beside their place, flushed, then renamed over it."""

from __future__ import annotations

import errno
import hashlib
import os
import secrets
import shutil
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from safetensors import SafetensorError


def atomic_write(path: str | os.PathLike[str], data: bytes | str) -> None:
    """Write ``data`` (text as UTF-8) to the file ``path``, creating parent folders.

    Readers see the old content or the new one, also after a crash or on a full disk.

    Raises:
        OSError: ``path`` cannot be written; it is as it was, and nothing is left beside it.
    """
    with reported(path):
        path = _place(path)
        temporary = _sibling(path, "tmp")
        try:
            temporary.write_bytes(data.encode() if isinstance(data, str) else data)
            _sync_file(temporary)
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
        _sync_folder(path.parent)


@contextmanager
def atomic_dir(path: str | os.PathLike[str], *, known: Collection[str] = ()) -> Iterator[Path]:
    """Yield an empty folder to write into, which takes the place of ``path`` when the block ends well.

    A folder that already is at ``path`` goes away as a whole, but only if each name in it is also in the new
    one or in ``known``: a folder that holds anything else is somebody's, not an older version of this one.

    Raises:
        FileExistsError: ``path`` is a file, or a folder that holds other things.
        OSError: it is the current folder, or writing failed, inside the block too. In either case ``path`` is
            as it was, and nothing is left beside it.
    """
    with reported(path):
        path = _place(path)
        temporary = _sibling(path, "tmp")
        try:
            temporary.mkdir()
            yield temporary
            publish(temporary, path, known=known)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def publish(temporary: Path, path: Path, *, known: Collection[str] = ()) -> None:
    """Let ``temporary``, a folder beside ``path``, take its place; the last step of ``atomic_dir``, with its errors."""
    _refuse_foreign(path, {*known, *os.listdir(temporary)})
    for folder, _, names in os.walk(temporary):
        # Who may read the folder may read its files: safetensors makes them for their owner alone.
        mode = os.stat(folder).st_mode & 0o666
        for name in names:
            os.chmod(Path(folder, name), mode)
            _sync_file(Path(folder, name))
        _sync_folder(Path(folder))
    _swap(temporary, path)
    _sync_folder(path.parent)


def refuse_foreign(path: str | os.PathLike[str], known: Collection[str]) -> None:
    """What ``atomic_dir`` says in the end of a folder that it does not replace, for before there is work to lose.

    Raises:
        OSError: as there; ``known``: all names that may be in the folder.
    """
    with reported(path):
        _refuse_foreign(_place(path), known)


def digest(path: Path) -> str:
    """The SHA-256 of a file, which is read in pieces: it may be larger than the memory."""
    found = hashlib.sha256()
    with path.open("rb") as content:
        while piece := content.read(1 << 20):
            found.update(piece)
    return found.hexdigest()


def _swap(temporary: Path, path: Path) -> None:
    """A rename cannot replace a folder that holds files, so the old one steps aside, and back on failure."""
    if not path.exists():
        temporary.replace(path)
        return
    aside = _sibling(path, "old")
    path.replace(aside)
    try:
        temporary.replace(path)
    except BaseException:
        aside.replace(path)
        raise
    shutil.rmtree(aside, ignore_errors=True)


def _place(path: str | os.PathLike[str]) -> Path:
    """Where a rename has to put it: behind links, so that a link stays one, and with a name of its own."""
    return Path(os.path.realpath(path))


def _refuse_foreign(path: Path, allowed: Collection[str]) -> None:
    if not path.exists():
        return
    if Path.cwd().is_relative_to(path):
        raise OSError(errno.EBUSY, "it is the current folder, or above it, and is not replaced; name one below it")
    if not path.is_dir():
        raise FileExistsError(errno.EEXIST, "it is a file, expected a folder or nothing")
    foreign = sorted(set(os.listdir(path)) - set(allowed))
    if foreign:
        raise FileExistsError(errno.EEXIST, f"it holds other files ({', '.join(foreign[:3])}) and is not replaced")


def _sibling(path: Path, kind: str) -> Path:
    """A hidden, unused name in the same folder, so that renaming stays on one file system."""
    path.parent.mkdir(parents=True, exist_ok=True)
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}.{kind}")


def _sync_file(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sync_folder(path: Path) -> None:
    # Where folders cannot be flushed (some network file systems), the rename is atomic all the same.
    with suppress(OSError):
        _sync_file(path)


@contextmanager
def reported(path: str | os.PathLike[str]) -> Iterator[None]:
    """One kind of error and one message for every way to fail, with the path that the caller gave."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, f"could not write {path}: {error.strerror or error}") from error
    except SafetensorError as error:  # how safetensors reports a full disk
        raise OSError(errno.EIO, f"could not write {path}: {error}") from error
