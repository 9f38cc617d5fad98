"""Memory that was freed stays with the process, so that no measurement pays for fresh pages of the operating system."""

from __future__ import annotations

import ctypes

# Names of malloc.h.
_TRIM_THRESHOLD, _MMAP_MAX = -1, -4


def keep_freed_memory() -> bool:
    """Tell the C library's allocator to keep what is freed; False where it is not glibc's, and nothing changed.

    A large result is otherwise mapped anew in every call, or not, by the sizes that were freed before: 3 ms of 8 in one
    process and none in the next. What is measured is so what models get that repeat their steps under an allocator
    that keeps memory, as torch's on GPUs does and those that its guide to performance names.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # another C library; no handle of the process itself (Windows)
        return False
    return bool(mallopt(_MMAP_MAX, 0)) and bool(mallopt(_TRIM_THRESHOLD, -1))
