"""What ``torch.func`` needs of an operator: rules for ``vmap``, and a form that ``grad`` can differentiate.

``torch.library.register_autograd`` does not serve the transforms of ``torch.func``; an ``autograd.Function`` with a
``setup_context`` does. Many inputs of one layer are more rows of one product, many layers are one call each.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch._C._functorch import TransformType
from torch._functorch.pyfunctorch import retrieve_all_functorch_interpreters
from torch.autograd import forward_ad

Dims = tuple[int | None, ...]
_FUNCTIONS: dict[Any, type[torch.autograd.Function]] = {}


def apply(op: Any, *args: Any) -> Any:
    """``op(*args)``, such that the transforms of ``torch.func`` differentiate it."""
    if torch.compiler.is_compiling() or not (torch._C._are_functorch_transforms_active() or in_forward_mode()):
        return op(*args)
    return _FUNCTIONS[op].apply(*args)


def in_forward_mode() -> bool:
    """Whether tensors may carry tangents, which operators of ``torch.library`` would drop without a word."""
    return forward_ad._current_level >= 0


def by_dense_weight() -> bool:
    """Whether results are to be had of the dense weight alone: derivatives in forward mode, and those of ``torch.func``
    while ``torch.compile`` traces, which takes neither the operator's nor an ``autograd.Function`` there; and whatever
    ``torch.jit.trace`` sees, which records such a function as Python that it cannot save.
    """
    if torch.compiler.is_compiling():
        return in_forward_mode() or _differentiated()
    return in_forward_mode() or torch.jit.is_tracing()


@torch.compiler.assume_constant_result
def _differentiated() -> bool:
    if not torch._C._are_functorch_transforms_active():
        return False
    levels = retrieve_all_functorch_interpreters()
    return any(level.key() in (TransformType.Grad, TransformType.Jvp) for level in levels)


def register(op: Any, save: Callable[..., None], derive: Callable[..., Any], rule: Callable[..., Any]) -> None:
    """Give ``op`` its rule for ``vmap``, and the derivative it has outside of ``torch.func`` inside of it."""
    torch.library.register_vmap(op, partial(rule, op))

    class Function(torch.autograd.Function):
        forward = staticmethod(op)
        setup_context = staticmethod(save)
        backward = staticmethod(derive)
        vmap = staticmethod(partial(rule, partial(apply, op)))

    Function.__name__ = Function.__qualname__ = str(op)
    _FUNCTIONS[op] = Function


def forward(op: Callable[..., Tensor], info: Any, in_dims: Dims, *args: Any) -> tuple[Tensor, int]:
    """``op(x, T, S, bias, *settings)``: ``x`` of rows or images, with any of the four batched."""
    tensors, settings = _batch_first(args[:4], in_dims), args[4:]
    batched = [dim is not None for dim in in_dims[:4]]
    if batched == [True, False, False, False]:
        y = op(tensors[0].flatten(0, 1), *tensors[1:], *settings)
        return _split(y, tensors[0]), 0
    if info.batch_size == 0:
        return op(*_zeros(tensors, batched), *settings)[None][:0], 0
    return torch.stack([op(*_item(tensors, batched, i), *settings) for i in range(info.batch_size)]), 0


def backward(
    op: Callable[..., tuple[Tensor, ...]], info: Any, in_dims: Dims, *args: Any
) -> tuple[tuple[Tensor, ...], tuple[int | None, ...]]:
    """``op(dy, x, T, S, need, *settings)``; each item's gradients of the factors are its own, so they take a call."""
    tensors, settings = _batch_first(args[:4], in_dims), args[4:]
    batched = [dim is not None for dim in in_dims[:4]]
    if settings[0] == [True, False, False] and not any(batched[2:]):
        dy, x = (t if b else t.expand(info.batch_size, *t.shape) for t, b in zip(tensors[:2], batched[:2], strict=True))
        dx, *unneeded = op(dy.flatten(0, 1), x.flatten(0, 1), *tensors[2:], *settings)
        return (_split(dx, x), *unneeded), (0, None, None)
    if info.batch_size == 0:
        return tuple(grad[None][:0] for grad in op(*_zeros(tensors, batched), *settings)), (0, 0, 0)
    items = [op(*_item(tensors, batched, i), *settings) for i in range(info.batch_size)]
    return tuple(map(torch.stack, zip(*items, strict=True))), (0, 0, 0)


def _batch_first(tensors: Sequence[Any], in_dims: Dims) -> list[Any]:
    return [t if dim is None else t.movedim(dim, 0) for t, dim in zip(tensors, in_dims, strict=False)]


def _zeros(tensors: Sequence[Any], batched: Sequence[bool]) -> list[Any]:
    """An item where there is none: it says of which shapes nothing is stacked."""
    return [t.new_zeros(t.shape[1:]) if b else t for t, b in zip(tensors, batched, strict=True)]


def _item(tensors: Sequence[Any], batched: Sequence[bool], index: int) -> list[Any]:
    return [t[index] if b else t for t, b in zip(tensors, batched, strict=True)]


def _split(flat: Tensor, like: Tensor) -> Tensor:
    """Undo ``like.flatten(0, 1)``."""
    return flat.unflatten(0, like.shape[:2])
