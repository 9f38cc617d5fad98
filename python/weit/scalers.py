"""Scalers and size-specific parameters of a target, laid out from those of the pre-trained model."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from math import ceil

import torch
from torch import Tensor, nn

from weit.bank import Source
from weit.heads import require_same_heads
from weit.nn.factors import KronFactors
from weit.nn.init import nearest_scalers
from weit_kernels import kron_weight

DEPTHS = ("prefix", "nearest")
_DENSE = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
_TEMPLATES, _SCALERS = ".templates", ".scalers"


@torch.no_grad()
def lay_out(
    model: nn.Module, source: Source, *, depth: str = "prefix", seed: int = 0, only_scalers: bool = False
) -> None:
    """Write the first guess into a kronified model, in place: the source's numbers, cut or repeated to its shapes.

    Layers correspond as ``map_depth`` says. Along an axis that shrinks the first entries stay, along one that grows they
    come again from the start. Weights keep the variance of their outputs: where inputs were cut, what is left grows by
    ``sqrt(old / new)`` features; where inputs come several times, they share the weight of the one, in random parts, so that
    the copies give what the one gave, but do not stay copies when they learn.

    Where a width that grows is no multiple of the templates', blocks that come again would not fall on the features that
    come again. There the dense weight grows, and scalers are the nearest by least squares, of the same norm: with
    templates that span every block the function is the same, with few it is a guess that fitting has to mend. The
    source's widths are read from its norms and biases; where those name several for inputs that are cut, blocks count in
    place of features, and the smallest where outputs grow so.

    Parameters that the source does not have, and those that differ along an axis that is no width, such as a head for
    other classes, keep their numbers.

    Args:
        model: the target, kronified with the bank that ``source`` comes with.
        source: ``bank.source``.
        depth: as for ``map_depth``.
        seed: of the random parts.
        only_scalers: leave all else as it is.

    Raises:
        ValueError: a Kron layer has no counterpart in ``source``, one on other templates, or one of another width where
            layers are interleaved; attention heads are of another size; norms and biases leave open which width a
            layer had; ``model`` is unchanged.

    Source: cutting and repeating along the width, WeiT (arXiv 2604.14769); copies that share a weight, Chen et al.
    2016, "Net2Net".
    """
    state = model.state_dict().items()
    target = {name: each for name, each in state if isinstance(each, Tensor) and not name.endswith(_TEMPLATES)}
    counterparts = map_depth(source.state, target, depth)
    _check_family(model, source, counterparts)
    check_heads(model, source)
    changed, inputs = _changed_features(model, source, counterparts), input_axes(model)
    widths = changed | _changed_grids(model, source, counterparts)
    before = _widths_before(model, source, counterparts, changed)
    ragged, features = _ragged(model, before), _input_widths(model, before)
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in target.items():
        old = source.state.get(counterparts.get(name, ""))
        if old is None or old.dim() != tensor.dim():
            continue
        changes = {(a, b) for a, b in zip(old.shape, tensor.shape, strict=True) if a != b}
        if not name.endswith(_SCALERS) and (only_scalers or not changes <= widths):
            continue
        if name in ragged:
            tensor.copy_(_grow_dense(*ragged[name], old, generator))
            continue
        new = resize(old.cpu(), tensor.shape)
        if name in inputs:
            new = new * _gain(old.shape[inputs[name]], new.shape, inputs[name], generator, features.get(name))
        tensor.copy_(new)


def resize(tensor: Tensor, shape: Sequence[int]) -> Tensor:
    """``tensor`` cut along each axis that is too long, and repeated from its start along each that is too short.

    Raises:
        ValueError: ``shape`` has another number of axes.
    """
    if len(shape) != tensor.dim():
        raise ValueError(f"shape must have {tensor.dim()} axes like the tensor, got {tuple(shape)}")
    for axis, (old, new) in enumerate(zip(tensor.shape, shape, strict=True)):
        if new != old:
            tensor = tensor.index_select(axis, torch.arange(new, device=tensor.device) % old)
    return tensor


def map_depth(source: Iterable[str], target: Iterable[str], depth: str = "prefix") -> dict[str, str]:
    """For each name in ``target`` that has one, its counterpart in ``source``.

    Names correspond if they are equal; but where modules form a list (their names are numbers) of another length, they
    correspond by position. In a shorter list, ``"prefix"`` keeps the first layers and ``"nearest"`` spreads over all, first
    on first and last on last. In a longer list each layer takes the nearest, so that neighbours come to be alike. Only
    layers with the same parameters correspond, and if there are none, those with more: a first block with a shortcut
    stands for first blocks, and for others where the source has no others.

    Args:
        source, target: dotted parameter names.
        depth: ``"prefix"`` or ``"nearest"``.

    Raises:
        ValueError: another ``depth``.
    """
    if depth not in DEPTHS:
        raise ValueError(f"depth must be one of {', '.join(DEPTHS)}, got {depth!r}")
    theirs, ours = ([tuple(name.split(".")) for name in names] for names in (source, target))
    return {".".join(our): ".".join(their) for our, their in _correspond(theirs, ours, depth)}


def check_heads(model: nn.Module, source: Source) -> None:
    """Raise ``ValueError`` if attention heads in ``model`` are known to be of another size than those of ``source``."""
    if source.head_dims:
        require_same_heads(model, source.head_dims, target_name="model", source_name="bank.source")


def check_grid(layer: nn.Module, name: str, shape: Sequence[int], other: Sequence[int]) -> None:
    """Raise ``ValueError`` if scalers ``(N, m, n)`` of an interleaved layer are to be made from those of another grid.

    There neighbouring features belong to neighbouring scalers, so the first features, which norms, embeddings and heads
    keep, are not those of the first scalers.
    """
    if getattr(layer, "layout", None) == "interleaved" and tuple(shape) != tuple(other):
        found = f"{name} is {tuple(shape)}, to be made from {tuple(other)}"
        raise ValueError(
            f"layers keep their width with layout='interleaved', but {found}; layout='block' takes any width"
        )


def input_axes(model: nn.Module) -> dict[str, int]:
    """Name of each parameter that multiplies a layer's input → the axis that is summed over."""
    axes = {}
    for path, module in model.named_modules():
        if isinstance(module, KronFactors):
            axes[f"{path}{_SCALERS}"] = 2
        elif isinstance(module, _DENSE):
            axes[f"{path}.weight"] = 1
    return axes


_Path = tuple[str, ...]


def _correspond(source: list[_Path], target: list[_Path], depth: str) -> Iterator[tuple[_Path, _Path]]:
    theirs, ours = _by_head(source), _by_head(target)
    listed = theirs.keys() != ours.keys() and all(head.isdigit() for head in (*theirs, *ours))
    chosen = _positions(theirs, ours, depth) if listed else {head: head for head in ours if head in theirs}
    for head, match in chosen.items():
        if () in ours[head] and () in theirs[match]:
            yield (head,), (match,)
        their_tails, our_tails = (list(filter(None, tails)) for tails in (theirs[match], ours[head]))
        for our_tail, their_tail in _correspond(their_tails, our_tails, depth) if our_tails else ():
            yield (head, *our_tail), (match, *their_tail)


def _by_head(paths: list[_Path]) -> dict[str, list[_Path]]:
    groups: dict[str, list[_Path]] = {}
    for head, *tail in paths:
        groups.setdefault(head, []).append(tuple(tail))
    return groups


def _positions(theirs: dict[str, list[_Path]], ours: dict[str, list[_Path]], depth: str) -> dict[str, str]:
    """Which numbered child of the source each numbered child of the target takes after."""
    old, new = (sorted(group, key=int) for group in (theirs, ours))
    keeps_first = depth == "prefix" and len(new) <= len(old)
    stretch = 1.0 if keeps_first else (len(old) - 1) / max(1, len(new) - 1)
    chosen = {}
    for position, head in enumerate(new):
        alike = [i for i, other in enumerate(old) if set(theirs[other]) == set(ours[head])]
        alike = alike or [i for i, other in enumerate(old) if set(theirs[other]) >= set(ours[head])]
        if alike:
            chosen[head] = old[min(alike, key=lambda i: abs(i - position * stretch))]
    return chosen


def _check_family(model: nn.Module, source: Source, counterparts: dict[str, str]) -> None:
    for path, module in model.named_modules(remove_duplicate=False):
        if not isinstance(module, KronFactors):
            continue
        name, scalers = f"{path}{_SCALERS}", module.scalers
        if name not in counterparts:
            raise ValueError(f"bank.source is of another model family: it has no counterpart of {name!r}")
        old = source.state[counterparts[name]]
        if old.dim() != 3 or old.shape[0] != scalers.shape[0]:
            found = f"{counterparts[name]!r} {tuple(old.shape)} for {name!r} {tuple(scalers.shape)}"
            raise ValueError(f"bank.source is of another bank: it has {found}, expected as many templates")
        check_grid(module, repr(name), scalers.shape, old.shape)


def _changed_features(model: nn.Module, source: Source, counterparts: dict[str, str]) -> set[tuple[int, int]]:
    """The numbers of features (old, new) of norms and biases."""
    found = set()
    for path, module in model.named_modules():
        if isinstance(module, _DENSE):
            continue
        for leaf, parameter in module.named_parameters(recurse=False):
            counterpart = counterparts.get(f"{path}.{leaf}")
            if counterpart is not None and parameter.dim() == 1:
                found.add((source.state[counterpart].shape[0], parameter.shape[0]))
    return found


def _changed_grids(model: nn.Module, source: Source, counterparts: dict[str, str]) -> set[tuple[int, int]]:
    """The same of the rows and columns of Kron layers, in whole blocks."""
    found = set()
    for name, layer in _kron_layers(model):
        _, p, q = layer.templates.shape[:3]
        old, new = source.state[counterparts[name]].shape, layer.scalers.shape
        found |= {(old[1] * p, new[1] * p), (old[2] * q, new[2] * q)}
    return found


def _kron_layers(model: nn.Module) -> Iterator[tuple[str, KronFactors]]:
    """Each with the name of its scalers."""
    for path, module in model.named_modules():
        if isinstance(module, KronFactors):
            yield f"{path}{_SCALERS}", module


def _widths_before(
    model: nn.Module, source: Source, counterparts: dict[str, str], changed: set[tuple[int, int]]
) -> dict[str, list[list[int]]]:
    """Name of scalers → the widths that the layer's out and in may have had in the source, each from the smallest."""
    found = {}
    for name, layer in _kron_layers(model):
        grid = source.state[counterparts[name]].shape[1:]
        axes = zip(grid, layer.templates.shape[1:3], layer.dense_shape, strict=True)
        found[name] = [_width_before(*axis, changed) for axis in axes]
    return found


def _width_before(blocks: int, size: int, new: int, changed: set[tuple[int, int]]) -> list[int]:
    """Widths of so many blocks of ``size`` that ``new`` may come from: as norms and biases say, else itself or whole."""
    known = {old for old, now in changed if now == new and ceil(old / size) == blocks}
    return sorted(known) or [new if ceil(new / size) == blocks else blocks * size]


def _ragged(model: nn.Module, before: dict[str, list[list[int]]]) -> dict[str, tuple[KronFactors, tuple[int, ...]]]:
    """Name of scalers → layer and its (out, in) in the source, for layers that grow from blocks that are cut."""
    found = {}
    for name, layer in _kron_layers(model):
        grows = False
        for widths, size, new in zip(before[name], layer.templates.shape[1:3], layer.dense_shape, strict=True):
            if len(widths) > 1 and widths[0] < new:
                either = " or ".join(map(str, widths))
                raise ValueError(f"bank.source does not say whether {name!r} grows from {either} features to {new}")
            grows |= widths[0] < new and widths[0] % size > 0
        if grows:
            found[name] = layer, tuple(widths[0] for widths in before[name])
    return found


def _input_widths(model: nn.Module, before: dict[str, list[list[int]]]) -> dict[str, tuple[int, int]]:
    """Name of scalers → how many inputs the layer had in the source and has now, where there is one answer."""
    found = {}
    for name, layer in _kron_layers(model):
        _, widths = before[name]
        if len(widths) == 1:
            found[name] = widths[0], layer.dense_shape[1]
    return found


def _grow_dense(layer: KronFactors, before: Sequence[int], scalers: Tensor, generator: torch.Generator) -> Tensor:
    """Scalers of ``layer`` whose dense weight is nearest to that of ``scalers``, ``before`` (out, in), when that grows."""
    templates, (out, inn) = layer.templates.detach().cpu().double(), before
    dense = kron_weight(templates, scalers.cpu().double(), out_features=out, in_features=inn, layout=layer.layout)
    shape = (*layer.dense_shape, *dense.shape[2:])
    grown = resize(dense, shape) * _gain(inn, shape, 1, generator)
    nearest = nearest_scalers(grown, templates, layer.layout)
    out, inn = layer.dense_shape
    found = kron_weight(templates, nearest, out_features=out, in_features=inn, layout=layer.layout)
    # What templates cannot say is lost; without its share the layer's outputs would be too small.
    return nearest * grown.norm() / found.norm().clamp_min(torch.finfo(torch.double).tiny)


def _gain(
    old: int, shape: Sequence[int], axis: int, generator: torch.Generator, features: tuple[int, int] | None = None
) -> Tensor:
    """What a weight that was cut or repeated from ``old`` entries to ``shape`` along its input ``axis`` is multiplied by.

    ``features``: how many the entries stand for, before and now, if they are blocks.
    """
    new = shape[axis]
    if new <= old:
        before, now = features or (old, new)
        return torch.tensor((before / now) ** 0.5)
    copied = torch.arange(new) % old
    parts = torch.rand(tuple(shape), generator=generator) + 0.5
    totals = torch.zeros(*shape[:axis], old, *shape[axis + 1 :]).index_add_(axis, copied, parts)
    return parts / totals.index_select(axis, copied)
