"""bert2BERT and Net2Net: a bigger model that computes what a smaller trained one does, or nearly."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from weit.heads import head_dims, require_same_heads
from weit.matching import DENSE
from weit.rivals.axes import RESIDUAL, Axis, copies, width_axes
from weit.rivals.layers import block_list, counterparts, require_counterparts, require_source

VARIANTS = ("fpi", "aki")


@torch.no_grad()
def initialize_like(
    target: nn.Module,
    source: nn.Module | None,
    *,
    seed: int = 0,
    variant: str = "fpi",
    noise: float = 0.1,
) -> nn.Module:
    """Copy the features of the smaller, trained ``source`` as often as ``target`` has room, in place, and return it.

    ``"fpi"``: each feature of the wider model repeats one of the narrower, and whatever reads copies gives each a part of
    the weight of the one, so that the function is preserved. It is preserved exactly, to rounding, when the depth is the
    same, activations work on each feature alone, and either every layer norm sees each feature equally often, that is
    the residual width is a multiple of the source's, or there is none (a network with batch norms). Heads and hidden
    features of the MLP may be repeated unevenly.

    ``"aki"``: heads and hidden features that are added come from the block above, those of the last block from itself.
    This is not function-preserving.

    A deeper model repeats the list of blocks from its start, which is not function-preserving either. After whole copies
    come the first blocks here, 1 2 3 1 2 3 1 2 for 8 from 3, and the top ones in the paper's algorithm, 1 2 3 1 2 3 2 3.

    The papers leave open or do at random which feature is repeated: here the first ones come again in their order, so
    that heads stay whole. Copies in equal parts would never become different in training; bert2BERT's FPI has equal parts,
    Net2Net adds noise. Here parts differ at random, which changes no output.

    Args:
        target: of the same family as ``source``, no smaller in anything, with heads of the same size.
        variant: ``"fpi"`` or ``"aki"``; the latter is for vision transformers.
        noise: largest relative difference of a part from an equal one before parts are made to sum to the whole; from 0
            up to but not 1.
        seed: of the noise.

    Raises:
        ValueError: ``source`` is missing, larger or of another family; another ``variant``; ``target`` is unchanged then.

    Source: Chen et al., "bert2BERT: Towards Reusable Pretrained Language Models", ACL 2022 (arXiv 2110.07143); Chen,
    Goodfellow & Shlens, "Net2Net", ICLR 2016 (arXiv 1511.05641).
    """
    small = require_source(source)
    if variant not in VARIANTS:
        raise ValueError(f"variant must be one of {', '.join(VARIANTS)}, got {variant!r}")
    if not 0 <= noise < 1:
        raise ValueError(f"noise must be from 0 up to but not 1, got {noise!r}")
    require_same_heads(target, head_dims(small))
    theirs, ours, axes = small.state_dict(), target.state_dict(), width_axes(target)
    names = counterparts(theirs, ours, _stack)
    require_counterparts(theirs, names)
    above = _blocks_above(theirs, block_list(target)) if variant == "aki" else {}
    readers = {f"{path}.weight" for path, module in target.named_modules() if isinstance(module, DENSE)}
    generator = torch.Generator().manual_seed(seed)
    grown = {}
    for name, tensor in ours.items():
        old = theirs[names[name]]
        _check_growth(name, old, tensor, axes[name])
        if axes[name] and axes[name][0] not in ((), (RESIDUAL,)) and names[name] in above:
            new = _widen_knowing(old, theirs[above[names[name]]], tensor.shape[0], axes[name][0])
        else:
            new = _widen(old, tensor.shape[0], 0, axes[name][0]) if tensor.dim() else old
        for axis in range(1, tensor.dim()):
            new = _widen(new, tensor.shape[axis], axis, axes[name][axis])
        if name in readers and axes[name][1]:
            new = new * _parts(old.shape[1], new, axes[name][1], noise, generator)
        grown[name] = new
    target.load_state_dict(grown)
    return target


def _stack(position: int, have: int, want: int, path: str) -> int:
    if have > want:
        raise ValueError(f"source must not be deeper than target, but {path} has {have} in source and {want} in target")
    return position % have


def _blocks_above(names: Iterable[str], blocks: str) -> dict[str, str]:
    """For the name of each tensor in a block, that of the same tensor one block further, where there is one."""
    known, above = set(names), {}
    for name in known:
        if name.startswith(f"{blocks}."):
            index, _, rest = name.removeprefix(f"{blocks}.").partition(".")
            if (upper := f"{blocks}.{int(index) + 1}.{rest}") in known:
                above[name] = upper
    return above


def _check_growth(name: str, old: Tensor, new: Tensor, axes: tuple[Axis, ...]) -> None:
    sizes = f"{name} is {tuple(old.shape)} in source and {tuple(new.shape)} in target"
    if old.dim() != new.dim() or any(a > b for a, b in zip(old.shape, new.shape, strict=True)):
        raise ValueError(f"source must be no larger than target, but {sizes}")
    if any(a != b and not axis for a, b, axis in zip(old.shape, new.shape, axes, strict=True)):
        raise ValueError(f"source and target must differ in width and depth alone, but {sizes}")


def _widen(tensor: Tensor, size: int, axis: int, of: Axis) -> Tensor:
    if tensor.shape[axis] == size:
        return tensor
    return tensor.index_select(axis, copies(tensor.shape[axis], size, of).to(tensor.device))


def _widen_knowing(tensor: Tensor, above: Tensor, size: int, of: Axis) -> Tensor:
    """Rows of ``tensor`` once, then rows of ``above``, in each of the streams."""
    parts = zip(tensor.chunk(len(of)), above.chunk(len(of)), strict=True)
    return torch.cat([torch.cat([own, _widen(upper, size // len(of), 0, of[:1])[len(own) :]]) for own, upper in parts])


def _parts(old: int, weight: Tensor, of: Axis, noise: float, generator: torch.Generator) -> Tensor:
    """What each column of ``weight`` is multiplied by: the parts of the copies of one of ``old`` features sum to 1."""
    index = copies(old, weight.shape[1], of)
    parts = 1 + noise * (2 * torch.rand(weight.shape, generator=generator, dtype=weight.dtype) - 1)
    totals = torch.zeros(len(weight), old, *weight.shape[2:], dtype=weight.dtype).index_add_(1, index, parts)
    return (parts / totals.index_select(1, index)).to(weight.device)
