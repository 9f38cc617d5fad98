"""Tables of measured, counted and predicted memory, and of what fits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.memory.budgets import BANK, DECODER, FULL_RANK, SMALL
from benchmarks.tables import Table
from weit_kernels.paths.blocks import GPU_BLOCK_BYTES

_PARTS = ("parameters", "gradients", "optimiser", "saved", "peak")


def memory(rows: Sequence[Mapping[str, Any]]) -> Table:
    """Found and predicted, in MiB."""
    lines = []
    for row in rows:
        found, predicted = row["found"], row["predicted"]
        cells = [f"{_mib(found[part])} ({_mib(predicted[part])})" for part in _PARTS]
        lines.append([row["what"], row["weights"], row["dtype"], row["how"], *cells])
    return Table(
        "Memory of training",
        "MiB found, and in brackets MiB that the model in `benchmarks/memory/model.py` predicts. Gradients equal parameters "
        "by definition, and AdamW's state is of all parameters; `saved` is what the forward pass keeps for the backward "
        "pass; `peak` is the most in a step, without its input.",
        ("what", "weights", "dtype", "how", *_PARTS),
        lines,
        words=4,
    )


def budgets(rows: Sequence[Mapping[str, Any]]) -> Table:
    """The largest stacks for given memory."""
    lines = [[f"{row['budget_gb']} GB", *(f"{row[key]}" for key in row if key != "budget_gb")] for row in rows]
    return Table(
        "What fits",
        f"By the same model, computed and not measured: a decoder of width {DECODER.width}, hidden size {DECODER.hidden} "
        f"and depth {DECODER.depth} on one sequence of {DECODER.tokens} tokens, all numbers in 16 bits, where one size "
        f"grows. On a bank: N = {BANK.N} templates of {BANK.p} x {BANK.q} a role. The operator's "
        f"workspace is taken at its bound on a GPU, {GPU_BLOCK_BYTES >> 20} MiB. The last column is the largest N of "
        f"templates of {SMALL.p} x {SMALL.q} a role, of which {FULL_RANK} make any weight of that width.",
        ("memory", "depth, dense", "depth, bank", "width, dense", "width, bank", "N"),
        lines,
        words=1,
    )


def _mib(value: int | None) -> str:
    return "–" if value is None else f"{value / 2**20:.1f}"
