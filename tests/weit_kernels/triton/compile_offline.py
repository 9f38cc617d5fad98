"""Compile the kernels for GPUs that are not here. Run as a script, without the interpreter.

    python -m tests.weit_kernels.triton.compile_offline                  one JSON line a kernel, for a few shapes
    python -m tests.weit_kernels.triton.compile_offline --all            for every shape of the suite and every dtype
    python -m tests.weit_kernels.triton.compile_offline --all --table > docs/kernels.md

A row says what a program takes (registers a thread, shared memory, bytes spilt) and which matrix instructions came out.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, compile

from benchmarks.suite import load
from weit_kernels.shapes import FEW_ROWS, KronShape
from weit_kernels.triton import on_the_fly, pixels, scalers_first, sums, synth, templates_first, weight_grads
from weit_kernels.triton.few_rows import few_rows_tiles
from weit_kernels.triton.tiles import Tiles, forward_tiles, grad_tiles

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
CAPABILITIES = {80: "sm_80", 90: "sm_90a", 100: "sm_100a"}
UNITS = ("wgmma.mma_async", "mma.sync", "tcgen05.mma")
FEW = ("deit_b_fc1", "llm_4096", "decode_8192_b1")
PROCESSORS = 132  # of an H100 or H200: what tiles for few rows spread over


@dataclass(frozen=True)
class Kernel:
    """One kernel as it would be launched: its constants, and which of its arguments are pointers or multiples of 16."""

    name: str
    function: Any
    shape: str
    constants: dict[str, Any]
    pointers: tuple[str, ...]
    warps: int
    stages: int
    capabilities: tuple[int, ...] = tuple(CAPABILITIES)


def kernels(every: bool) -> Iterator[Kernel]:
    """The kernels of a forward and a backward pass, by the order that needs fewer operations, shape by shape."""
    for suite in load("linear", cpu=False):
        if every or suite.name in FEW:
            for dtype, itemsize in (("fp32", 4), ("16 bit", 2)) if every else (("16 bit", 2),):
                yield from _linear(suite.name, suite.shape, suite.rows, suite.kind == "train", dtype, itemsize)
                yield from _dense(suite.name, suite.shape, suite.rows, dtype, itemsize)
    for dtype in ("fp32", "16 bit") if every else ("16 bit",):
        for tall in (pixels._WIDE, pixels._LINES):
            tile = {"TALL": tall, "WIDE": pixels._WIDE}
            yield Kernel("pixels", pixels._kernel, f"maps, {dtype}", tile, ("source", "result"), tall // 16, 3)


def _linear(name: str, s: KronShape, rows: int, train: bool, dtype: str, itemsize: int) -> Iterator[Kernel]:
    def tiles(*sizes: int) -> Tiles:
        few = rows <= FEW_ROWS
        return few_rows_tiles(rows, PROCESSORS, *sizes, itemsize) if few else forward_tiles(*sizes, itemsize)

    label = f"{name}, {dtype}"
    tall, wide = (s.n, s.q, s.p, s.m), (s.q, s.n, s.m, s.p)
    forward, adjoint = (tall, (s.p, s.m, s.n, s.q)) if s.m >= s.n else (wide, (s.m, s.p, s.q, s.n))
    names = ("templates_first", "scalers_first") if s.m >= s.n else ("scalers_first", "templates_first")
    modules = {"templates_first": templates_first, "scalers_first": scalers_first}
    pointers = ("x", "T", "S", "bias", "y")
    yield _forward(names[0], modules[names[0]]._kernel, label, tiles(*forward, s.N), pointers, True)
    if train:
        yield _forward(f"{names[1]} (dx)", modules[names[1]]._kernel, label, tiles(*adjoint, s.N), pointers, False)
        n, q, p, m = tall if s.m >= s.n else (s.m, s.p, s.q, s.n)
        for most, capabilities in ((4096, (80,)), (16384, (90, 100))):
            yield from _grads(label, (n, q, p, m, s.N), itemsize, most, capabilities, s.m >= s.n)


def _grads(
    label: str, sizes: tuple[int, ...], itemsize: int, most: int, capabilities: tuple[int, ...], straight: bool
) -> Iterator[Kernel]:
    n, q, p, m, N = sizes
    grads = grad_tiles(n, q, p, m, N, itemsize, most)
    both = q <= grads.k and m <= grads.i
    for want in ((True, True),) if both else ((True, False), (False, True)):
        constants = {
            "BM": grads.tokens, "BJ": grads.j, "BK": grads.k, "BT": grads.t, "BA": grads.a, "BI": grads.i,
            "DEPTH": grads.depth, "WANT_T": want[0], "WANT_S": want[1],
        } | _unit_strides(straight)  # fmt: skip
        suffix = {(True, True): "", (True, False): " (dT)", (False, True): " (dS)"}[want]
        outputs = ("dy", "x", "T", "S", "dT", "dS")
        yield Kernel(
            "weight_grads" + suffix,
            weight_grads._kernel,
            label,
            constants,
            outputs,
            grads.warps,
            grads.stages,
            capabilities,
        )


def _dense(name: str, s: KronShape, rows: int, dtype: str, itemsize: int) -> Iterator[Kernel]:
    """The kernels that synthesise weights: tiles of them, a panel, and the panel's gradient."""
    label = f"{name}, {dtype}"
    fly = on_the_fly.fly_tiles(rows, s.p, s.q, s.N, itemsize)
    constants = {
        "BM": fly.rows, "BN": fly.out, "BK": fly.inn, "WHOLE": fly.whole, "UNROLLED": s.N if fly.unrolled else False,
        "BIAS": True,
    } | _unit_strides(True)  # fmt: skip
    yield Kernel(
        "on_the_fly", on_the_fly._kernel, label, constants, ("x", "T", "S", "bias", "y"), fly.warps, fly.stages
    )
    pairs, cols = s.m * s.n, s.p * s.q
    plain = {"TAPS": 1, "INTERLEAVED": False} | _unit_strides(True)
    for suffix, function, tiles, more in (
        ("weight", synth._weight, synth.weight_tiles(pairs, cols, s.N, "block"), {}),
        ("gradients", synth._gradients, synth.gradient_tiles(pairs, cols, s.N), {"WANT_T": True, "WANT_S": True}),
    ):
        constants = {"BR": tiles.rows, "BC": tiles.cols, "BT": tiles.t} | more | plain
        pointers = ("T", "S", "W") if suffix == "weight" else ("T", "S", "dW", "dT", "dS")
        yield Kernel(f"synth ({suffix})", function, label, constants, pointers, tiles.warps, tiles.stages)
    constants = {"AR": 1, "AC": 1024, "A_ADDS": False, "BR": 256, "BC": 16, "B_ADDS": True}
    yield Kernel("sums", sums._kernel, label, constants, ("A", "A_total", "B", "B_total"), 4, 1)


def _forward(name: str, function: Any, label: str, tiles: Tiles, pointers: tuple[str, ...], straight: bool) -> Kernel:
    constants = {
        "BM": tiles.tokens, "BJ": tiles.j, "BK": tiles.k, "BT": tiles.t, "BA": tiles.a, "BI": tiles.i, "BIAS": straight,
    } | _unit_strides(straight)  # fmt: skip
    if function is scalers_first._kernel:  # tiles are named for the other order
        constants |= {"BJ": tiles.k, "BK": tiles.j, "BA": tiles.i, "BI": tiles.a}
    return Kernel(name, function, label, constants, pointers, tiles.warps, tiles.stages)


def _unit_strides(straight: bool) -> dict[str, int]:
    """What the launcher makes constant: contiguous factors, or transposed ones."""
    return {"T_k": 1, "S_j": 1} if straight else {"T_a": 1, "S_i": 1}


def build(kernel: Kernel, dtype: str, capability: int) -> dict[str, Any]:
    """Compile one kernel for one GPU; what the assembler says about it."""
    names = kernel.function.arg_names
    constants = kernel.constants | {name: "ieee" for name in names if name.endswith("PRECISION")}
    partial = {"dT", "dS", "A", "B"}  # sums are float32 whatever the operands are
    signature = {
        name: "constexpr" if name in constants
        else f"*{'fp32' if name in partial else dtype}" if name in kernel.pointers
        else "i32"
        for name in names
    }  # fmt: skip
    ragged = {"M", "N", "splits", "n", "m", "first", "last", "A_programs", "A_parts", "B_parts", "height", "width"}
    attributes = {
        (i,): [["tt.divisibility", 16]]
        for i, name in enumerate(names)
        if signature[name] != "constexpr" and name not in ragged
    }
    source = ASTSource(kernel.function, signature, {(names.index(k),): v for k, v in constants.items()}, attributes)
    options = {"num_warps": kernel.warps, "num_stages": kernel.stages}
    compiled = compile(source, target=GPUTarget("cuda", capability, 32), options=options)
    ptx = compiled.asm["ptx"]
    return {
        "kernel": kernel.name,
        "shape": kernel.shape,
        "dtype": dtype,
        "capability": capability,
        "tiles": {k: v for k, v in kernel.constants.items() if k.isupper() and not isinstance(v, bool)},
        "warps": kernel.warps,
        "shared": compiled.metadata.shared,
        "instructions": [unit for unit in UNITS if unit in ptx],
        "products": ptx.count("wgmma.mma_async") if capability == 90 else None,
        **_assembled(ptx, CAPABILITIES[capability]),
    }


def _assembled(ptx: str, architecture: str) -> dict[str, int]:
    assembler = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
    newest = assembler / "ptxas-blackwell"  # beside an older one that cannot read all that Triton writes
    command = newest if newest.exists() else assembler / "ptxas"
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "kernel.ptx")
        file.write_text(ptx)
        said = subprocess.run(
            [command, "-v", "-arch", architecture, file, "-o", Path(folder, "kernel.cubin")],
            capture_output=True, text=True, check=False,
        ).stderr  # fmt: skip
    registers, spilt = re.search(r"Used (\d+) registers", said), re.findall(r"(\d+) bytes spill stores", said)
    assert registers is not None, said
    return {"registers": int(registers[1]), "spilt": sum(map(int, spilt))}


def table(rows: list[dict[str, Any]]) -> str:
    """``docs/kernels.md``."""
    lines = [
        "# What the Triton kernels take",
        "",
        "Written by `python -m tests.weit_kernels.triton.compile_offline --all --table`: the tiles that",
        "`weit_kernels/triton` chooses for the suite's shapes, compiled for GPUs without one at hand by Triton",
        f"{triton.__version__}. Registers are those of one thread, shared memory is KiB of one program, spills are bytes.",
        "None of these numbers is a speed.",
        "",
        "A product whose tile has fewer than 64 rows cannot use `wgmma` and takes `mma.sync`: the sum of `dS` where",
        "`n·N` is small, and the second product of a few rows.",
        "",
        "Products of float32 are sums of FMAs: their operands take registers as well as the sums, so some of these tiles",
        "spill: on sm_80 up to 4.6 KB in `dx`, where the assembler gives up and keeps 32 registers, from sm_90 on 52 bytes",
        "at most.",
        "16-bit tiles spill 8 to 176 bytes: on sm_80 where 64 columns of `dx` meet eight templates and in one weight",
        "gradient; on sm_100 where 64 scaler rows share a pass and in one weight made on the fly; on both for few rows,",
        "whose programs stop at 168 registers. None of them spills on sm_90.",
        "",
        "| kernel | shape | dtype | GPU | tiles | warps | registers | shared | spills | matrix instruction |",
        "|---|---|---|---|---|--:|--:|--:|--:|---|",
    ]
    for row in rows:
        tiles = " ".join(f"{name}={value}" for name, value in row["tiles"].items())
        head = (row["kernel"], row["shape"].partition(",")[0], row["dtype"], CAPABILITIES[row["capability"]], tiles)
        lines.append(
            f"| {' | '.join(head)} "
            f"| {row['warps']} | {row['registers']} | {row['shared'] / 1024:.0f} | {row['spilt']} "
            f"| {', '.join(row['instructions']) or 'none'} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Compile and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--all", action="store_true")
    parser.add_argument("--table", action="store_true")
    args = parser.parse_args()
    rows = []
    for kernel in kernels(args.all):
        wide = kernel.shape.endswith("fp32")
        for dtype in ["fp32"] if wide else ["bf16", "fp16"] if args.all else ["bf16"]:
            for capability in kernel.capabilities:
                rows.append(build(kernel, dtype, capability))
                if not args.table:
                    print(json.dumps(rows[-1]), flush=True)
    if args.table:
        print(table(rows))


if __name__ == "__main__":
    main()
