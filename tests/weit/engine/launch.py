"""Commands under torchrun, in subprocesses; and processes that cost no import of torch."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Callable
from multiprocessing import get_context
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

# From a process that has imported everything and started nothing, each run begins at once.
SERVER = get_context("forkserver")
SERVER.set_forkserver_preload(["tests.weit.engine.scenarios"])

ROOT = Path(__file__).parents[3]
TORCHRUN = ("torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m")
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "TORCH_CPP_LOG_LEVEL": "ERROR"}


def module(*command: object, timeout: float = 800) -> subprocess.CompletedProcess[str]:
    """``python -m`` the command; its output as text."""
    words = [sys.executable, "-m", *map(str, command)]
    return subprocess.run(words, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, timeout=timeout)


def scenarios(folder: Path, *names: str) -> subprocess.CompletedProcess[str]:
    """``tests.weit.engine.scenarios`` on two processes."""
    return module(*TORCHRUN, "tests.weit.engine.scenarios", folder, *names)


def forked(target: Callable[..., None], *arguments: Any) -> ForkServerProcess:
    """A process that has begun to run ``target``."""
    process = SERVER.Process(target=target, args=arguments)
    process.start()
    return process


def forked_pair(target: Callable[..., None], *arguments: Any) -> list[ForkServerProcess]:
    """Two processes that know each other as those of torchrun do."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    return [forked(_as_rank, str(rank), port, target, *arguments) for rank in range(2)]


def _as_rank(rank: str, port: str, target: Callable[..., None], *arguments: Any) -> None:
    os.environ.update(RANK=rank, LOCAL_RANK=rank, WORLD_SIZE="2", MASTER_ADDR="127.0.0.1", MASTER_PORT=port)
    target(*arguments)
