"""What the two promise, each in a process of its own, since neither can be taken back."""

import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("resource", reason="page faults are counted by getrusage")

ROOT = Path(__file__).parents[2]
FAULTS = """
import resource, torch
from benchmarks.allocator import keep_freed_memory

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(8):
        torch.empty(2**23 + 2**20).fill_(1)  # 36 MiB: glibc returns such memory in any case
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

alone = faults()
print(keep_freed_memory(), alone)
for _ in range(3):  # until the heap has room for an aligned piece of this size
    then = faults()
print(then)
"""


def test_large_tensors_are_not_mapped_anew() -> None:
    found = subprocess.run([sys.executable, "-c", FAULTS], capture_output=True, text=True, check=True, cwd=ROOT)
    kept, alone, then = found.stdout.split()
    if kept == "False":
        pytest.skip("the allocator is not glibc's")
    if int(alone) < 1000:
        pytest.skip("this system counts no page faults, or maps large pages")
    assert int(then) < int(alone) / 2


PAGES = """
import torch
from benchmarks.allocator import _on_large_pages, use_large_pages

promised, before = use_large_pages(), _on_large_pages()
kept = torch.empty(2**27, dtype=torch.uint8).fill_(1)
print(promised, _on_large_pages() - before)
"""


def test_large_tensors_lie_on_large_pages() -> None:
    found = subprocess.run([sys.executable, "-c", PAGES], capture_output=True, text=True, check=True, cwd=ROOT)
    promised, more = found.stdout.split()
    assert (promised == "True") == (int(more) > 2**26)
