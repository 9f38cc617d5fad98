"""Calls of sizes that were seen before: no checks, no dispatcher.

A few rows of a small layer take less time than asking what to do with them. What the dispatcher is for (transforms,
tracing, modes, subclasses of tensors, gradients of gradients) sends a call the long way.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from weit_kernels.paths.convolution import memory_format
from weit_kernels.transforms import in_forward_mode

_PLAIN = (Tensor, nn.Parameter)
_SETTINGS = (type(None), int, str)
_MOST = 4096
_SEEN: dict[Hashable, Callable[..., Tensor]] = {}

Grads = Sequence[Tensor | None]


def key(tensors: tuple[Tensor | None, ...], choice: tuple[Any, ...]) -> Hashable:
    """What decides how a call runs; ``None`` for a call that must go the long way."""
    if torch.compiler.is_compiling():  # first of all: what follows is not for tracing
        return None
    for setting in choice:  # True equals 1, and would be taken for it
        if type(setting) not in _SETTINGS and not (type(setting) is tuple and all(type(n) is int for n in setting)):
            return None
    learns = torch.is_grad_enabled()
    sizes: list[Any] = [choice, torch._C._is_any_autocast_enabled()]  # which alone lets dtypes differ
    for tensor in tensors:
        if tensor is None:
            sizes.append(None)
        elif _is_plain(tensor):
            sizes += tensor.shape, tensor.dtype, tensor.device, tensor.layout, learns and tensor.requires_grad
        else:
            return None
    return None if _observed() else tuple(sizes)


def _is_plain(tensor: Tensor) -> bool:
    return type(tensor) in _PLAIN and not (tensor.is_neg() or tensor.is_nested)


def _observed() -> bool:
    """Whether something beside the caller must see the operators that run."""
    return (
        torch._C._are_functorch_transforms_active()
        or torch._C._len_torch_dispatch_stack() > 0
        or torch._C._len_torch_function_stack() > 0
        or torch.autograd._profiler_enabled()
        or torch._C._is_tracing()
        or in_forward_mode()
    )


def recall(key: Hashable) -> Callable[..., Tensor] | None:
    """The function of ``(x, templates, scalers, bias)`` for calls with this key, if there was one."""
    return _SEEN.get(key)


def remember(key: Hashable, function: Callable[..., Tensor]) -> None:
    """Use ``function(*tensors)`` for calls with this key from now on."""
    if key not in _SEEN and len(_SEEN) >= _MOST:
        _SEEN.clear()
    _SEEN[key] = function


@dataclass(frozen=True)
class Direct:
    """What a call in block layout runs.

    Attributes:
        forward: ``(x, templates, scalers, bias)`` → ``y (rows, out)`` or ``(B, out, *spatial)``.
        backward: ``(dy, x, templates, scalers, need)`` → gradients of the last three tensors, where needed.
        derived: the same through the operator, which can be differentiated and observed.
    """

    forward: Callable[..., Tensor]
    backward: Callable[..., Grads]
    derived: Callable[..., Grads]

    def function(self, *, learns: bool) -> Callable[..., Tensor]:
        """What takes the four tensors; ``learns``: a backward pass may follow."""
        return partial(_Learning.apply, self) if learns else partial(below_autograd, self.forward)


def bias_gradient(dy: Tensor) -> Tensor:
    """``(rows, out)`` or ``(B, out, *spatial)`` → ``(out,)``."""
    return dy.sum([0, *range(2, dy.dim())])


_ABOVE = torch._C.DispatchKeySet(torch._C.DispatchKey.ADInplaceOrView)
_ABOVE |= torch._C.DispatchKeySet(torch._C.DispatchKey.AutocastCPU)
_ABOVE |= torch._C.DispatchKeySet(torch._C.DispatchKey.AutocastCUDA)


def below_autograd(function: Callable[..., Any], *args: Any) -> Any:
    """``function(*args)`` with its operations as they are: no gradients, and no autocast, whose casts are made already.

    Nor are results views of what else was made, so that they may be overwritten in any mode.
    """
    with torch._C._AutoDispatchBelowAutograd(), torch._C._ExcludeDispatchKeyGuard(_ABOVE):
        return function(*args)


def keep(ctx: Any, x: Tensor, T: Tensor, S: Tensor, need: tuple[bool, ...]) -> None:
    """Save what the gradients of ``x``, ``T`` and ``S`` that are needed read. Each reads the two others, so a tensor that
    alone has one is left out, as nn.Linear does: a frozen layer keeps no input, and a learning factor may be overwritten.
    """
    tensors, alone = (x, T, S), need.index(True) if sum(need) == 1 else None
    left_out = None if alone is None else tensors[alone]
    ctx.missing = None if left_out is None else (alone, left_out.shape, left_out.dtype, memory_format(left_out))
    ctx.save_for_backward(*(tensor if any(need) and i != alone else None for i, tensor in enumerate(tensors)))


def kept(ctx: Any, dy: Tensor) -> list[Tensor]:
    """``x``, ``T`` and ``S`` again, memory without numbers in place of one that was not saved."""
    tensors = list(ctx.saved_tensors)
    if ctx.missing is not None:
        index, shape, dtype, form = ctx.missing  # of dy's kind, which may be a subclass's
        last = [shape[0], *shape[2:], shape[1]]
        plain = form == torch.contiguous_format
        made = dy.new_empty(shape if plain else last, dtype=dtype)
        tensors[index] = made if plain else made.movedim(-1, 1)
    return tensors


class _Learning(torch.autograd.Function):
    """The short way with a way back.

    It keeps what the operator keeps: checkpointing compares what a second forward pass saves with what the first one did,
    and one of them may have gone the long way.
    """

    @staticmethod
    def forward(ctx: Any, direct: Direct, x: Tensor, T: Tensor, S: Tensor, bias: Tensor | None) -> Tensor:
        ctx.direct = direct
        keep(ctx, x, T, S, ctx.needs_input_grad[1:4])
        return below_autograd(direct.forward, x, T, S, bias)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        need = list(ctx.needs_input_grad[1:4])
        grads: Grads = (None, None, None)
        if any(need):
            operands = (dy, *kept(ctx, dy))
            dense = torch._C._dispatch_keys(dy).has(torch._C.DispatchKey.Dense)  # not so in autograd's own vmap
            long = not dense or torch.is_grad_enabled() or torch.compiler.is_compiling() or _observed()
            if long or not all(map(_is_plain, operands)):
                grads = ctx.direct.derived(*operands, need)
            else:
                grads = below_autograd(ctx.direct.backward, *operands, need)
        return None, *grads, bias_gradient(dy) if ctx.needs_input_grad[4] else None
