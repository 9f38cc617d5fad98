"""Compile the CUDA kernels without a GPU and show what the assembler says of each.

    python -m tests.weit_kernels.cuda.compile_offline                    one JSON line a kernel, for sm_90a
    python -m tests.weit_kernels.cuda.compile_offline --all              for every architecture
    python -m tests.weit_kernels.cuda.compile_offline --all --table > docs/kernels_cuda.md

A row says what a thread takes (registers, bytes spilt) and how many matrix instructions came out.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

SOURCES = Path(__file__).parents[3] / "csrc" / "cuda"
ARCHITECTURES = ("sm_80", "sm_90a", "sm_100", "sm_120")
UNITS = ("wgmma.mma_async", "mma.sync")


def rows(architecture: str, *sources: Path) -> Iterator[dict[str, Any]]:
    """The kernels of some sources, all by default, compiled for one architecture."""
    for source in sources or sorted(SOURCES.glob("*.cu")):
        yield from _rows(source, architecture)


def _rows(source: Path, architecture: str) -> Iterator[dict[str, Any]]:
    with tempfile.TemporaryDirectory() as folder:
        number = architecture.removeprefix("sm_")
        target = f"-gencode=arch=compute_{number},code=sm_{number}"
        command = ["nvcc", "-std=c++17", "-O3", target, "-Xptxas", "-v", "-I", SOURCES, "-c", source]
        command += ["--keep", "--keep-dir", folder, "-o", f"{folder}/kernels.o"]
        run = subprocess.run(command, capture_output=True, text=True, check=False)
        assert run.returncode == 0, run.stderr[-4000:]
        (ptx,) = (file.read_text() for file in Path(folder).glob("*.ptx"))
    _, *parts = re.split(r"\.entry (\w+)\(", ptx)  # a kernel's name, then its body up to the next one: all is inlined
    units = {
        name: [f"{body.count(unit)} {unit}" for unit in UNITS if unit in body]
        for name, body in zip(parts[::2], parts[1::2], strict=True)
    }
    said = re.findall(
        r"entry function '(\w+)'.*?(\d+) bytes stack frame, (\d+) bytes spill stores.*?Used (\d+) registers",
        run.stderr,
        re.DOTALL,
    )
    for mangled, stack, spilt, registers in sorted(said):
        yield {
            "source": source.name,
            "kernel": _readable(mangled),
            "architecture": architecture,
            "registers": int(registers),
            "stack": int(stack),
            "spilt": int(spilt),
            "instructions": units[mangled],
        }


def _readable(mangled: str) -> str:
    name = subprocess.run(["c++filt", mangled], capture_output=True, text=True, check=True).stdout.strip()
    for noise in ("void ", "weit::cuda::", "(anonymous namespace)::"):
        name = name.replace(noise, "")
    return re.sub(r"\(\w+\)$", "", name)  # kernels take one argument


def table(compiled: list[dict[str, Any]]) -> str:
    """``docs/kernels_cuda.md``."""
    release = re.search(r"release ([\d.]+)", subprocess.check_output(["nvcc", "--version"], text=True))
    lines = [
        "# What the CUDA kernels take",
        "",
        "Written by `python -m tests.weit_kernels.cuda.compile_offline --all --table`: the sources in `csrc/cuda`, compiled",
        f"for GPUs without one at hand by nvcc {release[1] if release else '?'}. Registers are those of one thread, spills",
        "are bytes. Shared memory is all dynamic: its size follows from a layer's. None of these numbers is a speed;",
        "[gpu.md](gpu.md) has those that were measured.",
        "",
        "| source | kernel | GPU | registers | spills | matrix instructions |",
        "|---|---|---|--:|--:|---|",
    ]
    for row in compiled:
        lines.append(
            f"| {row['source']} | `{row['kernel']}` | {row['architecture']} | {row['registers']} | {row['spilt']} "
            f"| {', '.join(row['instructions']) or 'none'} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Compile and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--all", action="store_true")
    parser.add_argument("--table", action="store_true")
    args = parser.parse_args()
    compiled = []
    for architecture in ARCHITECTURES if args.all else ("sm_90a",):
        for row in rows(architecture):
            compiled.append(row)
            if not args.table:
                print(json.dumps(row), flush=True)
    if args.table:
        print(table(sorted(compiled, key=lambda row: (row["source"], row["kernel"]))))


if __name__ == "__main__":
    main()
