"""Batches as a pure function of seed and step, from tensors, a data set or a data loader."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    RandomSampler,
    SequentialSampler,
    Subset,
    TensorDataset,
    default_collate,
)

from weit.engine.seeds import ITEMS, ORDER, PARTS, mix, reseed

Data: TypeAlias = "Dataset[Any] | DataLoader[Any] | Sequence[Tensor]"
"""A map-style data set of items (input, target), a list of them too; a data loader over one; or a pair of tensors (inputs,
targets).

Where a model takes several inputs, a data set's ``input`` is a tuple of tensors."""

Inputs: TypeAlias = "Tensor | tuple[Tensor, ...]"
Batch: TypeAlias = tuple[Inputs, Tensor]


class Batches:
    """The endless stream of shuffled batches of ``data``; batch ``step`` does not depend on how one got there.

    Every epoch is a new permutation of all items, and a batch may reach from one epoch into the next. Of each batch of
    ``batch_size`` items, process ``rank`` of ``world`` gets its equal share, so that a batch is the same on any number of
    processes. Random augmentation inside a data set is seeded anew for each batch.

    Args:
        data: see ``Data``. A ``DataLoader`` lends its data set, collate function, workers and memory pinning; its batch
            size and its shuffling are replaced by those here.
        batch_size: items in a batch, over all processes.
        workers: processes that fetch items ahead, in place of the loader's; 0 for as many as it has. Data in memory needs
            none.

    Attributes:
        count: items in ``data``.
        example: the first item of batch 0, as a batch of one; its inputs are a tuple always.

    Raises:
        TypeError: ``data`` is nothing of the kind, or its inputs are images of integers.
        ValueError: empty, tensors of unequal length, NaN or infinity in the inputs (all of them if they are tensors,
            else the first batch), a loader with a sampler of its own, a batch that the processes cannot share evenly.
    """

    def __init__(
        self, data: Data, batch_size: int, *, seed: int = 0, rank: int = 0, world: int = 1, workers: int = 0
    ) -> None:
        if batch_size % world:
            raise ValueError(f"batch_size must be a multiple of the number of processes, {world}, got {batch_size}")
        self._loader = data if isinstance(data, DataLoader) else None
        dataset, self._tensors, self.count = _opened(data)
        self._workers = workers or (self._loader.num_workers if self._loader else 0)
        self._items = _SeededItems(dataset, seed, rank)
        self._collate = default_collate if self._loader is None else self._loader.collate_fn
        self._share, self._seed, self._rank, self._world = batch_size // world, seed, rank, world
        self._order: tuple[int, Tensor] = (-1, torch.empty(0))
        self._labels: tuple[int, int] | None = None
        first, targets = self.batch(0)
        for inputs in tensors_of(first if self._tensors is None else self._tensors[0]):
            _check_inputs(inputs)
        self.example: Batch = tuple(tensor[:1].clone() for tensor in tensors_of(first)), targets[:1].clone()

    def indices(self, step: int) -> Tensor:
        """Which items batch ``step`` holds on this process: int64 ``(batch_size / world,)``."""
        position, missing = (step * self._world + self._rank) * self._share, self._share
        pieces = []
        while missing:
            epoch, start = divmod(position, self.count)
            pieces.append(self._permutation(epoch)[start : start + missing])
            position, missing = position + len(pieces[-1]), missing - len(pieces[-1])
        return pieces[0] if len(pieces) == 1 else torch.cat(pieces)

    def batch(self, step: int) -> Batch:
        """Inputs and targets of batch ``step`` on this process."""
        index = self.indices(step)
        if self._tensors is not None:
            inputs, targets = self._tensors
            return inputs[index], targets[index]
        return self._checked(self._collate(self._items.__getitems__((step, index.tolist()))))

    def stream(self, start: int, stop: int) -> Iterator[Batch]:
        """Batches ``start`` to ``stop - 1``, fetched ahead by the workers where there are any."""
        if self._tensors is not None or not self._workers:
            return map(self.batch, range(start, stop))
        keys: Iterable[Any] = ((step, self.indices(step).tolist()) for step in range(start, stop))
        given = self._loader
        loader: DataLoader[Any] = DataLoader(
            self._items,
            batch_sampler=keys,
            collate_fn=self._collate,
            num_workers=self._workers,
            pin_memory=given is not None and given.pin_memory,
            worker_init_fn=None if given is None else given.worker_init_fn,
            multiprocessing_context=None if given is None else given.multiprocessing_context,
        )
        return map(self._checked, loader)

    def limit_labels(self, classes: int, ignored: int) -> None:
        """Let integer targets be ``ignored`` or class labels below ``classes``: those in memory now, others batch by batch.

        Raises:
            ValueError: now or from ``stream``, any other label.
        """
        self._labels = classes, ignored
        if self._tensors is not None:
            _check_labels(self._tensors[1], classes, ignored)

    def _checked(self, batch: Any) -> Batch:
        pair = _as_pair(batch)
        if self._labels is not None:
            _check_labels(pair[1], *self._labels)
        return pair

    def _permutation(self, epoch: int) -> Tensor:
        if self._order[0] != epoch:
            generator = torch.Generator().manual_seed(mix(self._seed, ORDER, epoch))
            self._order = epoch, torch.randperm(self.count, generator=generator)
        return self._order[1]


class _SeededItems(Dataset[Any]):
    """A data set whose items are drawn on randomness that depends on the batch alone, in a worker process too."""

    def __init__(self, dataset: Any, seed: int, rank: int) -> None:
        self._dataset, self._seed, self._rank = dataset, seed, rank

    def __getitems__(self, key: tuple[int, list[int]]) -> list[Any]:
        step, indices = key
        reseed(mix(self._seed, ITEMS, step, self._rank))
        if hasattr(self._dataset, "__getitems__"):
            return self._dataset.__getitems__(indices)
        return [self._dataset[i] for i in indices]


def item_count(data: Data) -> int:
    """How many items ``data`` holds.

    Raises:
        TypeError, ValueError: as ``Batches``.
    """
    return _opened(data)[2]


def split(data: Data, held: int, seed: int) -> tuple[Data, Data]:
    """Two parts of ``data``: ``held`` of its items, drawn at random, come second, all others first.

    A single item makes both parts. A part of tensors in memory is a copy; a part of a loader is a loader like it.

    Raises:
        TypeError, ValueError: as ``Batches``.
    """
    dataset, tensors, count = _opened(data)
    order = torch.randperm(count, generator=torch.Generator().manual_seed(mix(seed, PARTS)))
    parts: list[Data] = []
    for index in (order[held:] if count > 1 else order, order[:held]):
        if tensors is not None:
            parts.append((tensors[0][index], tensors[1][index]))
            continue
        part: Dataset[Any] = Subset(dataset, index.tolist())
        parts.append(_loader_like(data, part) if isinstance(data, DataLoader) else part)
    return parts[0], parts[1]


def tensors_of(inputs: Inputs) -> tuple[Tensor, ...]:
    """The inputs of a model as it takes them, one after another."""
    return (inputs,) if isinstance(inputs, Tensor) else inputs


def _opened(data: Data) -> tuple[Any, tuple[Tensor, Tensor] | None, int]:
    """The data set of ``data``, the pair of tensors behind it if that is all there is, and the number of items."""
    dataset: Any = _dataset_of(data) if isinstance(data, DataLoader) else data
    tensors = _as_tensors(dataset)
    return dataset, tensors, _count(dataset, tensors)


def _dataset_of(loader: DataLoader[Any]) -> Any:
    own = [loader.sampler, getattr(loader.batch_sampler, "sampler", loader.sampler)]
    foreign = [each for each in own if not isinstance(each, RandomSampler | SequentialSampler)]
    if type(loader.batch_sampler) not in (BatchSampler, type(None)):
        foreign.append(loader.batch_sampler)
    if foreign:
        sampler = type(foreign[0]).__name__
        raise ValueError(f"data draws by its own {sampler}, but the order follows from the seed; pass its data set")
    return loader.dataset


def _loader_like(loader: DataLoader[Any], dataset: Dataset[Any]) -> DataLoader[Any]:
    return DataLoader(
        dataset,
        batch_size=loader.batch_size,
        collate_fn=loader.collate_fn,
        num_workers=loader.num_workers,
        pin_memory=loader.pin_memory,
        worker_init_fn=loader.worker_init_fn,
        multiprocessing_context=loader.multiprocessing_context,
    )


def _as_tensors(data: Any) -> tuple[Tensor, Tensor] | None:
    """The pair of tensors behind ``data``, so that a batch is one indexing; ``None`` where items have to be fetched."""
    if isinstance(data, TensorDataset) and type(data).__getitem__ is TensorDataset.__getitem__:
        data = data.tensors
    if not isinstance(data, tuple | list):
        return None
    if isinstance(data, list) and all(isinstance(item, tuple | list) for item in data):  # a data set of items
        return None
    inputs, targets = _as_pair(data)
    if not isinstance(inputs, Tensor):
        raise TypeError("data in memory must be a pair of tensors; several inputs come from a data set")
    if len(inputs) != len(targets):
        raise ValueError(f"inputs and targets must be of one length, got {len(inputs)} and {len(targets)}")
    return inputs, targets


def _as_pair(batch: Any) -> Batch:
    if not isinstance(batch, tuple | list):
        raise TypeError(f"data must give pairs of tensors (inputs, targets), got {type(batch).__name__}")
    inputs = batch[0] if batch else ()
    several = isinstance(inputs, tuple | list)
    parts = [*inputs, *batch[1:]] if several else list(batch)
    if (
        len(batch) != 2
        or (several and not inputs)
        or not all(isinstance(part, Tensor) and part.dim() for part in parts)
    ):
        kinds = ", ".join(type(part).__name__ for part in parts[:4]) + ", …" * (len(parts) > 4)
        raise TypeError(f"data must give pairs of tensors (inputs, targets), got ({kinds})")
    return tuple(inputs) if several else inputs, batch[1]


def _count(dataset: Any, tensors: tuple[Tensor, Tensor] | None) -> int:
    if tensors is not None:
        count = len(tensors[0])
    elif hasattr(dataset, "__getitem__") and hasattr(dataset, "__len__") and not isinstance(dataset, Mapping | str):
        count = len(dataset)
    else:
        expected = "a data set with __len__ and __getitem__, a DataLoader, or a pair of tensors"
        raise TypeError(f"data must be {expected}, got {type(dataset).__name__}")
    if not count:
        raise ValueError("data must hold at least one item, got none")
    return count


def _check_inputs(inputs: Tensor) -> None:
    if not inputs.is_floating_point() and (inputs.dtype == torch.uint8 or inputs.dim() > 2):
        raise TypeError(f"inputs must be floating, got {inputs.dtype} of shape {tuple(inputs.shape)}; scale them first")
    if not torch.isfinite(inputs).all():
        bad = (~torch.isfinite(inputs)).flatten(1).any(1) if inputs.dim() > 1 else ~torch.isfinite(inputs)
        raise ValueError(f"inputs must be finite, got NaN or infinity in {int(bad.sum())} of {len(bad)} items")


def _check_labels(targets: Tensor, classes: int, ignored: int) -> None:
    if targets.is_floating_point():
        return
    labels = targets[targets != ignored]
    if len(labels) and (labels.min() < 0 or labels.max() >= classes):
        found = f"labels from {int(labels.min())} to {int(labels.max())}"
        raise ValueError(f"targets must be below the {classes} outputs of the model and not negative, got {found}")
