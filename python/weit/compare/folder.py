"""The folder of a comparison, told from anybody else's before anything in it is replaced."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from weit.files import reported

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

_MARK = "weit-compare.json"


def check_folder(out: Path) -> None:
    """Raise ``FileExistsError`` unless ``out`` is new, empty or an earlier comparison's."""
    if out.exists() and not (out / _MARK).is_file() and (not out.is_dir() or any(out.iterdir())):
        raise FileExistsError(f"out must be new or the folder of an earlier comparison: {out} holds something else")


@contextmanager
def held(out: Path) -> Iterator[None]:
    """Make ``out`` a comparison's, and keep others from it until the block ends, or this process does, however it ends.

    Where the system or ``out``'s file system knows no locks, nobody is kept from it.

    Raises:
        FileExistsError: as ``check_folder``. BlockingIOError: another process holds it, or another thread. OSError: it
            cannot be written.
    """
    check_folder(out)
    with reported(out):
        out.mkdir(parents=True, exist_ok=True)
        mark = (out / _MARK).open("a")  # never replaced: the lock is on the file, not on its name
    with mark:
        try:
            if fcntl is not None:
                fcntl.flock(mark, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise BlockingIOError(f"another comparison is running in {out}") from None
        except OSError:  # not on this file system
            pass
        if mark.tell() == 0:
            mark.write("{}\n")
            mark.flush()
        if fcntl is None:
            mark.close()  # Windows deletes no folder with an open file in it
        yield
