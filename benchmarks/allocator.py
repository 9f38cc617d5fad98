"""Memory that was freed stays with the process, so that no measurement pays for fresh pages of the operating system."""

from __future__ import annotations

import ctypes

# Names of malloc.h.
_TRIM_THRESHOLD, _MMAP_MAX = -1, -4
_LARGE = 2**26  # bytes; glibc maps what exceeds 32 MiB by itself


def keep_freed_memory() -> bool:
    """Tell the C library's allocator to keep what is freed; False where another one serves, and nothing changed.

    A large result is otherwise mapped anew in every call, or not, by the sizes that were freed before: a convolution of
    5 ms took 9 in one process and 5 in the next. What is measured is so what models get that repeat their steps under an
    allocator that keeps memory, as torch's on GPUs does and those that its guide to performance names.
    """
    try:
        libc = ctypes.CDLL(None)
        mallopt, sbrk, malloc, free = libc.mallopt, libc.sbrk, libc.malloc, libc.free
    except (AttributeError, OSError, TypeError):  # another C library; no handle of the process itself (Windows)
        return False
    if not (mallopt(_MMAP_MAX, 0) and mallopt(_TRIM_THRESHOLD, -1)):
        return False
    malloc.restype = sbrk.restype = ctypes.c_void_p
    malloc.argtypes, free.argtypes = [ctypes.c_size_t], [ctypes.c_void_p]
    sbrk.argtypes = [ctypes.c_ssize_t]
    large = malloc(_LARGE)  # on the heap now, unless an allocator that was loaded before the C library's has it
    on_heap = bool(large) and large < (sbrk(0) or 0)
    free(large)
    return on_heap
