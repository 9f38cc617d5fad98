"""The flags that name data and model, the same in every command that trains one."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from weit.cli.arguments import Parser, usage
from weit.engine.processes import training_device
from weit.models import create_model
from weit.models.sizes import parse_size
from weit.tasks import Size, Task, load_task
from weit.tasks.classification import OWN_IMAGES

SIZE: Size = {"width": 64, "depth": 6}  # of the package's own models, where the user names none


@dataclass(frozen=True)
class DataFlags:
    """Which task.

    Args:
        family: classification (the default), generation or control.
        data: of that family: digits or fashion-mnist, or for your own images folder or hf-dataset; latents for generation
            from a file of your own; an environment such as Hopper-v5 for control.
        root: folder or file of the data, if it is not in the usual place. Of your own images: CLASS/*.jpg, or that in each
            of train, validation and test; a data set that was saved to disk for hf-dataset.
        image_size: side that your own images are brought to; if not given, that of the bank or model to start from, or 64.
        augment: of your own images in training: crop, randaugment or none; if not given, likewise, or crop.
    """

    family: str | None = None
    data: str | None = None
    root: Path | None = None
    image_size: int | None = None
    augment: str | None = None

    def task(self, parser: Parser) -> Task:
        """The task; unless files that ``root`` names may be at fault, what it refuses is an error in usage."""
        family, options = self.family or "classification", {"image_size": self.image_size, "augment": self.augment}
        with usage(parser) if self.root is None else nullcontext():
            return load_task(self.data, self.root, family, **options)

    def or_else(self, made_for: Mapping[str, Any]) -> DataFlags:
        """Where they name no task, that of a bank or a model, which keeps what ``weit.by_name.made_for`` gave."""
        family, data = self.family or made_for.get("family"), self.data
        if data is None and family == made_for.get("family"):
            data = made_for.get("data")
        found = replace(self, family=family, data=data)
        if data not in OWN_IMAGES:
            return found
        options = {name: getattr(self, name) or made_for.get(name) for name in ("image_size", "augment")}
        return replace(found, **options)


@dataclass(frozen=True)
class SizeFlags:
    """How large a model.

    Args:
        size: WIDTHxDEPTH, as 64x6, or name=64,other=2-2 for a model with other names for its sizes.
        width: in place of size.
        depth: in place of size.

    Raises:
        ValueError: both are given, or the size reads like nothing.
    """

    size: str | None = None
    width: int | None = None
    depth: int | None = None

    def __post_init__(self) -> None:
        if self.size is not None and (self.width, self.depth) != (None, None):
            raise ValueError(f"size must not be given together with width or depth, got {self.size}")
        self.or_else({})

    def or_else(self, default: Size) -> Size:
        """The sizes asked for; those not named are as in ``default``."""
        if self.size is not None:
            return {**default, **parse_size(self.size)}
        asked = {"width": self.width, "depth": self.depth}
        return {**default, **{name: value for name, value in asked.items() if value is not None}}


def model_arguments(parser: Parser, task: Task, model: str, size: Size) -> dict[str, Any]:
    """Arguments of ``create_model``; if there is no such model, or none of that size, that is an error in usage."""
    with usage(parser), torch.device("meta"):
        arguments = task.arguments(model, size)
        create_model(model, **arguments)
    return arguments


def scores(task: Task, network: nn.Module, *splits: str) -> str:
    """What ``network`` scores on each split, in words; where it would be trained, which it comes back from."""
    found, device = [], next(network.parameters()).device
    network.to(training_device())
    for split in splits:
        values = task.evaluate(network, split)
        found += [f"{split} {metric.label} {metric.show(values[metric.name])}" for metric in task.metrics
                  if metric.name in values]  # fmt: skip
    network.to(device)
    return ", ".join(found)
