"""What ``keep_freed_memory`` promises, in a process of its own, since it cannot be taken back."""

import subprocess
import sys

import pytest

FAULTS = """
import resource, torch
from benchmarks.allocator import keep_freed_memory

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(8):
        torch.empty(2**24).fill_(1)  # 64 MiB, beyond what the allocator may keep by itself
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

alone = faults()
print(keep_freed_memory(), alone)
for _ in range(3):  # until the heap has room for an aligned piece of this size
    then = faults()
print(then)
"""


def test_large_tensors_are_not_mapped_anew() -> None:
    found = subprocess.run([sys.executable, "-c", FAULTS], capture_output=True, text=True, check=True)
    kept, alone, then = found.stdout.split()
    if kept == "False":
        pytest.skip("the C library's allocator is not glibc's")
    assert int(then) < int(alone) / 2
