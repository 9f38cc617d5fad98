"""Which layers of two models of different depth correspond, and a transformer's blocks as one stack."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from itertools import chain
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from weit.matching import find_layers

Pick: TypeAlias = Callable[[int, int, int, str], int]
"""(position, have, want, path of the list): which of ``have`` layers the one at ``position`` of ``want`` takes from."""


def require_source(source: nn.Module | None) -> nn.Module:
    """``source``; raises ``ValueError`` if there is none."""
    if source is None:
        raise ValueError("source must be a trained model, got None")
    return source


def block_list(model: nn.Module) -> str:
    """The path of the list of a vision transformer's blocks.

    Raises:
        ValueError: ``model`` is no vision transformer that built-in rules know.
    """
    for match in find_layers(model, None):
        if "q" in match.roles:
            parts = match.path.split(".")
            return ".".join(parts[: next(i for i, part in enumerate(parts) if part.isdigit())])
    raise ValueError(f"model must be a vision transformer, got {type(model).__name__}")


def stack_blocks(state: Mapping[str, Tensor], blocks: str) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The tensors of the blocks, name within a block -> ``(depth, ...)``, and those outside, by their names.

    Raises:
        ValueError: the blocks are not alike.
    """
    layers: dict[str, list[Tensor]] = {}
    outside = {}
    for name, tensor in state.items():
        if name.startswith(f"{blocks}."):
            layers.setdefault(name.removeprefix(f"{blocks}.").partition(".")[2], []).append(tensor)
        else:
            outside[name] = tensor
    depths = {len(tensors) for tensors in layers.values()}
    if len(depths) != 1 or any(len({tensor.shape for tensor in tensors}) > 1 for tensors in layers.values()):
        raise ValueError(f"the blocks in {blocks} must be alike")
    return {name: torch.stack(tensors) for name, tensors in layers.items()}, outside


def unstack_blocks(layers: Mapping[str, Tensor], outside: Mapping[str, Tensor], blocks: str) -> dict[str, Tensor]:
    """The state dict that ``stack_blocks`` takes apart."""
    inside = {f"{blocks}.{i}.{name}": each for name, stacked in layers.items() for i, each in enumerate(stacked)}
    return {**outside, **inside}


def common_blocks(target: nn.Module, source: nn.Module) -> str:
    """The path of the list of blocks in two vision transformers of one family.

    Raises:
        ValueError: one of them is no vision transformer, or a tensor has no counterpart.
    """
    blocks = block_list(target)
    if block_list(source) != blocks:
        raise ValueError(f"source must be of the target's family, but has its blocks in {block_list(source)}")
    ours, theirs = ({*chain(*stack_blocks(model.state_dict(), blocks))} for model in (target, source))
    if ours != theirs:
        raise ValueError(f"source must be of the target's family, but {min(ours ^ theirs)} is in one of them only")
    return blocks


def counterparts(theirs: Iterable[str], ours: Iterable[str], pick: Pick) -> dict[str, str]:
    """The source's name for each of the target's tensors; one that has none keeps its own.

    Numbers in a path are layers. Where the source's list is longer or shorter, ``pick`` says which layer to take from,
    among those with tensors of the same names: a first block with a shortcut takes from first blocks only.
    """
    return dict(_pairs(_tree(theirs), _tree(ours), pick, "", ""))


def require_counterparts(theirs: Collection[str], names: Mapping[str, str]) -> None:
    """Raise ``ValueError`` if one of ``names``, the target's to the source's, is not among ``theirs``, with the reason."""
    for our, their in names.items():
        if their in theirs:
            continue
        parts, path = their.split("."), our.split(".")
        if any(_without_numbers(each) == _without_numbers(their) for each in theirs):
            for i, block in enumerate(path):
                where, here = ".".join(parts[:i]), ".".join(path[:i])
                have, want = _blocks_in(theirs, where), _blocks_in(names, here)
                if block.isdigit() and have != want:
                    raise ValueError(
                        f"source must have blocks like the target's, but {where} has {have} in source and {want} in "
                        f"target, and none in source has the parameters of target's {block}, counted from 0"
                    )
        raise ValueError(f"source must be of the target's family, but has no {their}")


def _without_numbers(name: str) -> list[str]:
    return ["" if part.isdigit() else part for part in name.split(".")]


def _blocks_in(names: Iterable[str], path: str) -> int:
    """How many numbered children ``path`` has."""
    found = {name.removeprefix(f"{path}.").partition(".")[0] for name in names if name.startswith(f"{path}.")}
    return sum(map(str.isdigit, found))


_Tree: TypeAlias = dict[str, Any]


def _tree(names: Iterable[str]) -> _Tree:
    root: _Tree = {}
    for name in names:
        node = root
        for part in name.split("."):
            node = node.setdefault(part, {})
    return root


def _pairs(theirs: _Tree, ours: _Tree, pick: Pick, their_path: str, our_path: str) -> Iterator[tuple[str, str]]:
    listed = theirs.keys() != ours.keys() and all(part.isdigit() for part in (*theirs, *ours))
    for part, node in ours.items():
        match = part
        if listed:
            have, want = ([key for key in tree if tree[key] == node] for tree in (theirs, ours))
            if have:
                match = have[pick(want.index(part), len(have), len(want), our_path)]
        there, here = (f"{path}.{key}" if path else key for path, key in ((their_path, match), (our_path, part)))
        if node:
            yield from _pairs(theirs.get(match, {}), node, pick, there, here)
        else:
            yield here, there
