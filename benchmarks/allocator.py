"""What the system's pages would otherwise decide: memory that was freed stays, and large tensors lie on large pages."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

import torch

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


def use_large_pages() -> bool:
    """Have torch ask Linux for pages of 2 MiB for what is as large; False where there are none.

    On which small pages a tensor lies, and so which of its parts share lines of a cache, differs in each process: the same
    convolution was 2.9 times as fast as the dense one in one, 3.3 times in the next. To be called before torch's first
    tensor, at which it reads the variable.
    """
    os.environ["THP_MEM_ALLOC_ENABLE"] = "1"
    before = _on_large_pages()
    probe = torch.empty(_LARGE, dtype=torch.uint8).fill_(1)
    if 2 * (_on_large_pages() - before) > len(probe):
        return True
    del os.environ["THP_MEM_ALLOC_ENABLE"]
    return False


def _on_large_pages() -> int:
    """Bytes of this process on large pages; 0 where the system does not say."""
    try:
        lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return sum(1024 * int(line.split()[1]) for line in lines if line.startswith("AnonHugePages:"))
