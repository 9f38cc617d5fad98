"""Calls without gradients of sizes that were seen before: no checks, no dispatcher.

One row of a small layer takes less time than asking what to do with it. What the dispatcher is for (gradients, autocast,
transforms, tracing, modes, subclasses of tensors) sends a call the long way.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any

import torch
from torch import Tensor, nn

from weit_kernels.transforms import in_forward_mode

_PLAIN = (Tensor, nn.Parameter)
_SETTINGS = (type(None), int, str)
_MOST = 4096
_SEEN: dict[Hashable, Callable[..., Tensor]] = {}


def key(tensors: tuple[Tensor | None, ...], choice: tuple[Any, ...]) -> Hashable:
    """What decides how a call without gradients runs; ``None`` for a call that must go the long way."""
    if torch.compiler.is_compiling():  # first of all: what follows is not for tracing
        return None
    for setting in choice:  # True equals 1, and would be taken for it
        if type(setting) not in _SETTINGS and not (type(setting) is tuple and all(type(n) is int for n in setting)):
            return None
    train = torch.is_grad_enabled()
    sizes: list[Any] = [choice]
    for tensor in tensors:
        if tensor is None:
            sizes.append(None)
        elif type(tensor) not in _PLAIN or tensor.is_neg() or (train and tensor.requires_grad):
            return None
        else:
            sizes += tensor.shape, tensor.dtype, tensor.device, tensor.layout
    return None if _observed() else tuple(sizes)


def _observed() -> bool:
    """Whether something beside the caller must see the operators that run."""
    return (
        torch._C._is_any_autocast_enabled()
        or torch._C._are_functorch_transforms_active()
        or torch._C._len_torch_dispatch_stack() > 0
        or torch._C._len_torch_function_stack() > 0
        or torch.autograd._profiler_enabled()
        or in_forward_mode()
    )


def recall(key: Hashable) -> Callable[..., Tensor] | None:
    """The function for calls with this key, if there was one."""
    return _SEEN.get(key)


def remember(key: Hashable, function: Callable[..., Tensor]) -> None:
    """Use ``function(*tensors)`` for calls with this key from now on."""
    if key not in _SEEN and len(_SEEN) >= _MOST:
        _SEEN.clear()
    _SEEN[key] = function
