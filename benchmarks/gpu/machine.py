"""Facts about the machine and the source that belong beside every figure."""

from __future__ import annotations

import os
import platform
import re
import subprocess
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[2]
_CLOCKS = {
    "clocks.sm": "sm_mhz",
    "clocks.max.sm": "sm_max_mhz",
    "clocks.mem": "memory_mhz",
    "temperature.gpu": "celsius",
    "power.draw": "watts",
    "power.limit": "watts_limit",
}


def slug(name: str) -> str:
    """A device's name as part of a file name: ``"NVIDIA H100 PCIe"`` → ``"nvidia-h100-pcie"``."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def device_facts(device: str) -> dict[str, Any]:
    """Name, memory, caches and driver of the device that is measured."""
    if device == "cpu":
        return {"name": "cpu", "processor": platform.processor() or platform.machine(), "cores": os.cpu_count()}
    properties = torch.cuda.get_device_properties(0)
    return {
        "name": properties.name,
        "capability": f"{properties.major}.{properties.minor}",
        "multiprocessors": properties.multi_processor_count,
        "memory_bytes": properties.total_memory,
        "l2_bytes": getattr(properties, "L2_cache_size", None),
        "driver": _smi("driver_version"),
    }


def header(device: str, dtype: str, quick: bool) -> dict[str, Any]:
    """All facts that a result file starts with."""
    return {
        "about": "written by `python -m benchmarks.gpu`; docs/gpu.md explains it",
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "quick": quick,
        "dtype": dtype,
        "device": device_facts(device),
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version() if device == "cuda" else None,
            "triton": _version("triton"),
        },
        "commit": _git("rev-parse", "HEAD"),
        "dirty": None if (changes := _git("status", "--porcelain")) is None else bool(changes),
        "environment": {k: v for k, v in os.environ.items() if k.startswith("WEIT_") and k != "WEIT_CACHE"},  # a path
    }


def clocks(device: str) -> dict[str, float] | None:
    """Clocks, temperature and power now; ``None`` where ``nvidia-smi`` is missing or does not say."""
    line = _smi(",".join(_CLOCKS)) if device == "cuda" else None
    if line is None:
        return None
    found = {}
    for name, value in zip(_CLOCKS.values(), line.split(","), strict=False):
        try:
            found[name] = float(value)
        except ValueError:  # "[N/A]"
            continue
    return found or None


def _smi(fields: str) -> str | None:
    command = ["nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader,nounits"]
    uuid = getattr(torch.cuda.get_device_properties(0), "uuid", None)
    if uuid is not None:  # else the first of the machine, which CUDA_VISIBLE_DEVICES may have hidden
        command.append(f"--id={uuid if str(uuid).startswith('GPU-') else f'GPU-{uuid}'}")
    return _output(command)


def _git(*arguments: str) -> str | None:
    return _output(["git", "-C", str(ROOT), *arguments])


def _output(command: list[str]) -> str | None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
