"""Compile the kernels for GPUs that are not here; one JSON line for each. Run as a script, without the interpreter."""

from __future__ import annotations

import json

import torch
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, compile

from weit_kernels.triton import PATHS
from weit_kernels.triton.tiles import STAGES, WARPS, choose_tiles

# n, q, p, m, N of the suite's deit_b_fc1 and llm_4096.
SHAPES = {"deit_b_fc1": (4, 192, 192, 16, 8), "llm_4096": (16, 256, 256, 16, 4)}
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
POINTERS = {"x", "T", "S", "bias", "y"}
ALIGNED = {"n", "m", "p", "q", "in_features", "out_features", "T_t", "T_a", "S_t", "S_i"}


def main() -> None:
    for path, module in PATHS.items():
        for shape, (n, q, p, m, N) in SHAPES.items():
            for dtype_name, dtype in DTYPES.items():
                first, second = ((n, q, p, m), (q, n, m, p))[path == "scalers_first"], N
                tiles = choose_tiles(*first, second, dtype.itemsize)
                for capability in (80, 90, 100):
                    print(json.dumps(record(path, module, shape, dtype_name, tiles, capability)), flush=True)


def record(path, module, shape, dtype_name, tiles, capability) -> dict[str, object]:
    names = module._kernel.arg_names
    sizes = (
        tiles.tokens,
        tiles.first_outer,
        tiles.first_inner,
        tiles.templates,
        tiles.second_inner,
        tiles.second_outer,
    )
    constants = dict(zip(names[-8:-2], sizes, strict=True)) | {"BIAS": True, "PRECISION": "ieee", "T_k": 1, "S_j": 1}
    signature = {
        name: "constexpr" if name in constants else f"*{dtype_name}" if name in POINTERS else "i32" for name in names
    }
    divisible = [["tt.divisibility", 16]]
    attributes = {(i,): divisible for i, name in enumerate(names) if name in POINTERS | ALIGNED}
    source = ASTSource(module._kernel, signature, {(names.index(k),): v for k, v in constants.items()}, attributes)
    options = {"num_warps": WARPS, "num_stages": STAGES}
    compiled = compile(source, target=GPUTarget("cuda", capability, 32), options=options)
    ptx = compiled.asm["ptx"]
    return {
        "path": path,
        "shape": shape,
        "dtype": dtype_name,
        "capability": capability,
        "shared": compiled.metadata.shared,
        "instructions": [name for name in ("wgmma.mma_async", "mma.sync", "tcgen05.mma") if name in ptx],
        "products": ptx.count("wgmma.mma_async") if capability == 90 else None,
    }


if __name__ == "__main__":
    main()
