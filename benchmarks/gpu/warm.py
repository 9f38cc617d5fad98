"""Compiles, in several processes while the tests run, the kernels that the suite will use.

    python -m benchmarks.gpu.warm INDEX COUNT

Compiled kernels go to Triton's and torch's caches on disk. Nothing is timed and nothing tuned here, and errors are left
for the measuring process to find and record.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import torch

from benchmarks.gpu import steps
from benchmarks.gpu.contenders import COMPILED, FORCED, build, suite_shapes
from benchmarks.operands import Operands, make_step

_BYTES = 10 << 30  # that one process may need for the largest shape


def start_workers(logs: Path) -> list[subprocess.Popen[bytes]]:
    """As many processes as cores and free device memory allow, none on a small machine."""
    free, _ = torch.cuda.mem_get_info()
    count = min(4, (os.cpu_count() or 1) // 3, int(free // _BYTES) - 1)
    env = steps.environment(WEIT_TUNE="0")
    return [
        steps.start([sys.executable, "-m", "benchmarks.gpu.warm", str(i), str(count)], logs / f"warm-{i}.log", env)
        for i in range(count)
    ]


def finish_workers(workers: list[subprocess.Popen[bytes]], seconds: float) -> None:
    """Wait for ``seconds`` in all, then stop those that still run."""
    end = time.monotonic() + seconds
    for worker in workers:
        try:
            worker.wait(max(0.0, end - time.monotonic()))
        except subprocess.TimeoutExpired:
            pass
        finally:
            steps.stop(worker, polite=False)


def main(index: int, count: int, device: str = "cuda", quick: bool = False) -> None:
    """Call the Triton paths and the compiled materialisation once for every ``count``-th shape."""
    names = [name for name in FORCED if name.endswith("/triton")] + [COMPILED]
    for suite in suite_shapes(device, quick)[index::count]:
        operands = Operands(suite, device, torch.bfloat16)
        torch._dynamo.reset()
        for name in names:
            for phase in suite.phases:
                try:
                    make_step(build(name, operands), operands, phase)()
                except Exception as error:
                    print(suite.name, name, error, flush=True)
        if device == "cuda":
            torch.cuda.synchronize()  # raises if a kernel has brought the device into a bad state: then stop here


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
