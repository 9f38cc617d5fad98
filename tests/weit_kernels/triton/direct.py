"""A path's module as a differentiable function, without the operator above it; and memory that shows what is unwritten."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from weit_kernels.paths import blocks
from weit_kernels.paths.convolution import ConvArgs

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@contextmanager
def poisoned() -> Iterator[None]:
    """Fill what is allocated with NaN, so that an element no kernel wrote shows; kept workspaces are dropped."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    assert torch.utils.deterministic.fill_uninitialized_memory
    blocks._KEPT.__dict__.clear()
    yield
    torch.use_deterministic_algorithms(before)


def operator(module: Any, out: int, layout: str = "block", conv: ConvArgs | None = None) -> Callable[..., Tensor]:
    """``(x, T, S, bias) → y`` by the module's own forward and backward functions, for any leading axes of ``x``."""
    forward, backward = (module.linear, module.linear_backward) if conv is None else (module.conv, module.conv_backward)
    settings = () if conv is None else (conv,)

    class Apply(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor, T: Tensor, S: Tensor, bias: Tensor | None) -> Tensor:
            ctx.save_for_backward(x, T, S)
            return forward(x, T, S, bias, out, *settings)

        @staticmethod
        def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
            need = list(ctx.needs_input_grad[:3])
            grads = backward(dy.contiguous(), *ctx.saved_tensors, need, *settings)
            assert [grad is not None for grad in grads] == need
            return *grads, dy.sum([0, *range(2, dy.dim())]) if ctx.needs_input_grad[3] else None

    def apply(x: Tensor, T: Tensor, S: Tensor, bias: Tensor | None) -> Tensor:
        if conv is not None:
            return Apply.apply(x, T, S, bias)
        if layout == "interleaved":  # for a linear layer the block form with the factors exchanged
            T, S = S, T
        y = Apply.apply(x.reshape(-1, x.shape[-1]), T, S, bias)
        return y.view(*x.shape[:-1], out)

    return apply
