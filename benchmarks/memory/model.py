"""A model of training memory: what a dense transformer stack and one on a template bank take, from sizes alone.

With AdamW, ``i`` bytes a number, ``rows = batch · tokens``, width ``d``, hidden size ``h``:

    parameters  P = i · (numbers in all weights, biases and norms; templates count once a role, scalers once a layer)
    gradients   G = P
    optimiser   O = 2 P
    saved       A = depth · rows · (i · (8 d + 2 h) + 16 + 4 heads),  gated: 4 h in place of 2 h
    peak        P + O + max(A + in flight, G + AdamW's)

Saved for each token and block: input and output of both norms (4 d) with mean and deviation (two float32 each), queries,
keys, values and the attention's result (4 d) with a float32 a head, input and output of the GELU (2 h); with a gate, the
gate before and after its SiLU, the other half and their product (4 h). Kron layers save what dense layers save, their
input. In flight at the start of the backward pass are gradients of ``2 d + h`` numbers a token (gated: ``2 d + 2 h``),
those of the last layer's parameters, and the operator's workspace. AdamW holds two temporaries of the parameter that it
is at; on a GPU, where torch updates all parameters at a time (``foreach``), one of every parameter.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from math import ceil

import torch

from benchmarks.memory.measure import Memory
from weit_kernels import plan


@dataclass(frozen=True)
class Kron:
    """Templates of every role: ``N`` of ``p × q``."""

    N: int
    p: int
    q: int


@dataclass(frozen=True)
class Sizes:
    """A transformer stack and what it is trained on."""

    depth: int
    width: int
    hidden: int
    heads: int
    batch: int
    tokens: int
    gated: bool = False
    bias: bool = True
    dtype: torch.dtype = field(default=torch.float32)

    @property
    def rows(self) -> int:
        return self.batch * self.tokens

    @property
    def layers(self) -> dict[str, tuple[int, int]]:
        """Role → ``(out, in)`` of the layers of one block."""
        attention = dict.fromkeys("qkvo", (self.width, self.width))
        if self.gated:
            wide = {"gate": (self.hidden, self.width), "up": (self.hidden, self.width)}
            return {**attention, **wide, "down": (self.width, self.hidden)}
        return {**attention, "fc1": (self.hidden, self.width), "fc2": (self.width, self.hidden)}


def factors(layer: tuple[int, int], kron: Kron | None) -> tuple[int, int]:
    """Numbers in a layer's weight: ``(shared by all layers of the role, its own)``."""
    out, inn = layer
    if kron is None:
        return 0, out * inn
    return kron.N * kron.p * kron.q, kron.N * ceil(out / kron.p) * ceil(inn / kron.q)


def workspace(layer: tuple[int, int], kron: Kron | None, rows: int, dtype: torch.dtype, device: str) -> int:
    """Bytes that one Kron layer's backward pass takes beside its results; nothing for a dense layer.

    As planned; of the compiled kernels all that ``weit_kernels.cpp.workspace_bytes`` names.
    """
    if kron is None:
        return 0
    m, n = ceil(layer[0] / kron.p), ceil(layer[1] / kron.q)
    return plan(rows, (kron.N, m, n), (kron.p, kron.q), dtype, device).workspace_bytes


def layer_memory(
    layer: tuple[int, int], rows: int, kron: Kron | None, dtype: torch.dtype = torch.float32, device: str = "cpu"
) -> Memory:
    """One layer with a bias that learns from ``sum(y)``; ``x`` needs a gradient too and is not counted in the peak.

    In flight in the backward pass are the gradients of ``x`` and of the parameters; those of the output are one number.
    """
    i, (out, inn) = dtype.itemsize, layer
    numbers = sum(factors(layer, kron)) + out
    parameters = i * numbers
    update = _update(i * numbers, i * max(*factors(layer, kron), out), device)
    saved = i * rows * inn
    work = workspace(layer, kron, rows, dtype, device)
    in_flight = i * rows * (inn + out) + parameters + work
    peak = 3 * parameters + max(in_flight, i * rows * inn + parameters + work + update)
    return Memory(parameters, parameters, 2 * parameters, saved, peak)


def _update(parameters: int, largest: int, device: str) -> int:
    """Bytes that AdamW takes beside its state, on a CPU parameter by parameter."""
    return 2 * largest if device == "cpu" else parameters


def stack_memory(sizes: Sizes, kron: Kron | None, device: str = "cpu", work: int | None = None) -> Memory:
    """A whole stack, by the formula at the top of this file; ``work``: workspace, by default as planned for ``device``."""
    s, i = sizes, sizes.dtype.itemsize
    pieces = {role: factors(layer, kron) for role, layer in s.layers.items()}
    shared, own = (sum(piece[k] for piece in pieces.values()) for k in (0, 1))
    biases = sum(out for out, _ in s.layers.values()) if s.bias else 0
    norms = (4 if s.bias else 2) * s.width
    parameters = i * (shared + s.depth * (own + biases + norms))
    inner = 4 if s.gated else 2
    saved = s.depth * s.rows * (i * (8 * s.width + inner * s.hidden) + 16 + 4 * s.heads)
    last = list(s.layers)[-1]
    in_flight = i * s.rows * (2 * s.width + (2 if s.gated else 1) * s.hidden) + i * sum(pieces[last])
    if work is None:
        work = max(workspace(layer, kron, s.rows, s.dtype, device) for layer in s.layers.values())
    update = _update(parameters, i * max(max(piece) for piece in pieces.values()), device)
    peak = 3 * parameters + max(saved + in_flight, parameters + update) + work
    return Memory(parameters, parameters, 2 * parameters, saved, peak)
