"""The blocks of a model, and activation checkpointing: what happens inside a block is computed twice, not kept."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from torch.func import functional_call
from torch.utils.checkpoint import checkpoint


def blocks_of(model: nn.Module) -> list[nn.Module]:
    """The innermost modules in lists (``ModuleList``, ``Sequential``) of ``model`` that have parameters and parts.

    Those are the layers of a transformer and the residual blocks of a convolutional network. A module that runs others
    which are none of its submodules, as ``weit.masks.Elastic`` does, names them as its ``skeletons``.
    """
    return list(dict.fromkeys(block for root in (model, *getattr(model, "skeletons", ())) for block in _blocks(root)))


@contextmanager
def recomputed(blocks: Sequence[nn.Module]) -> Iterator[None]:
    """While this runs, ``blocks`` keep nothing but their inputs for the backward pass, and compute the rest again then.

    Source: Chen et al. 2016, "Training deep nets with sublinear memory cost"; ``torch.utils.checkpoint``.
    """
    own = [vars(block).get("forward") for block in blocks]  # accelerate's hooks, among others, put one there
    for block in blocks:
        block.forward = _recomputed(block)
    try:
        yield
    finally:
        for block, forward in zip(blocks, own, strict=True):
            if forward is None:
                del block.forward
            else:
                block.forward = forward


def _blocks(module: nn.Module) -> Iterator[nn.Module]:
    for child in module.children():
        inner = list(_blocks(child))
        if inner:
            yield from inner
        elif isinstance(module, nn.ModuleList | nn.Sequential) and _is_composite(child):
            yield child


def _is_composite(module: nn.Module) -> bool:
    return any(True for _ in module.children()) and any(True for _ in module.parameters())


def _recomputed(block: nn.Module) -> Callable[..., Any]:
    body = _Body(block)

    def forward(*args: Any, **kwargs: Any) -> Any:
        # The tensors of now: by the time of the backward pass, functional_call may have put others in their place.
        tensors: dict[str, Tensor] = {
            f"block.{name}": tensor for name, tensor in block.named_parameters(remove_duplicate=False)
        }

        def run(*args: Any, **kwargs: Any) -> Any:
            return functional_call(body, tensors, args, kwargs, tie_weights=False)

        return checkpoint(run, *args, use_reentrant=False, **kwargs)

    return forward


class _Body(nn.Module):
    """A block whose call is its own forward pass, without hooks, as it was before it came to be recomputed."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block, self._forward = block, block.forward

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self._forward(*args, **kwargs)
