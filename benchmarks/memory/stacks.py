"""Transformer stacks to measure: pre-norm blocks, with a plain or a gated MLP, in the sizes that a ``Sizes`` names."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import weit
from benchmarks.memory.model import Kron, Sizes

ROLES = {
    r"blocks\.\d+\.(q|k|v|o)": r"\1",
    r"blocks\.\d+\.(gate|up|fc1)": r"\1",
    r"blocks\.\d+\.(down|fc2)": r"\1",
}


class Block(nn.Module):
    """Attention and MLP, each added to the residual stream ``(B, T, width)``; biases as ``sizes`` says."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        width, hidden, bias = sizes.width, sizes.hidden, sizes.bias
        self.heads = sizes.heads
        self.norm1, self.norm2 = nn.LayerNorm(width, bias=bias), nn.LayerNorm(width, bias=bias)
        self.q, self.k, self.v, self.o = (nn.Linear(width, width, bias) for _ in range(4))
        if sizes.gated:
            self.gate, self.up = nn.Linear(width, hidden, bias), nn.Linear(width, hidden, bias)
            self.down = nn.Linear(hidden, width, bias)
        else:
            self.fc1, self.fc2 = nn.Linear(width, hidden, bias), nn.Linear(hidden, width, bias)
        self.gated = sizes.gated

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm1(x)
        q, k, v = (layer(h).unflatten(-1, (self.heads, -1)).transpose(1, 2) for layer in (self.q, self.k, self.v))
        x = x + self.o(F.scaled_dot_product_attention(q, k, v, is_causal=self.gated).transpose(1, 2).flatten(2))
        h = self.norm2(x)
        if self.gated:
            return x + self.down(F.silu(self.gate(h)) * self.up(h))
        return x + self.fc2(F.gelu(self.fc1(h)))


class Stack(nn.Module):
    """``depth`` blocks on ``(B, T, width)``."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block(sizes) for _ in range(sizes.depth))

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return x


def build(sizes: Sizes, kron: Kron | None) -> Stack:
    """The stack in ``sizes.dtype``, its layers on one bank where ``kron`` says how large that is."""
    default = torch.get_default_dtype()
    torch.set_default_dtype(sizes.dtype)
    try:
        stack = Stack(sizes)
        if kron is not None:
            weit.kronify(stack, {"templates": kron.N, "template_shape": (kron.p, kron.q)}, rules=ROLES)
    finally:
        torch.set_default_dtype(default)
    return stack
