"""What starts are taken from, a bank and trained dense models: as the user gives them, or made by jobs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from weit.bank import TemplateBank
from weit.by_name import OF_DATA, check_built_with, of_data
from weit.compare import jobs
from weit.compare.config import SOURCES, CompareConfig
from weit.compare.lines import Job
from weit.files import digest
from weit.heads import head_dims, require_same_heads
from weit.matching import by_role, find_layers
from weit.models import create_model, load_model
from weit.models.create import default_arguments
from weit.models.sizes import parse_size, training_flops
from weit.tasks import Size, Task

BANK, SOURCE, SMALL = "bank", "source", "small"


@dataclass(frozen=True)
class Origin:
    """A bank or a trained dense model on disk.

    Attributes:
        digest: what identifies it.
        flops: floating-point operations of its training, 0 if not recorded.
        seconds: of the job that made it, if one did.
        network: the dense model; ``None`` for a bank.
        answer_flops: of the dense model's forward pass for one item.
        model, arguments: of ``create_model``, for the model behind it.
        smaller: the other sizes that a bank's pre-training ran at.
    """

    folder: Path
    digest: str
    flops: float
    seconds: float | None
    network: nn.Module | None
    answer_flops: float
    model: str
    arguments: dict[str, Any]
    smaller: tuple[Size, ...] = ()


def needed(config: CompareConfig) -> list[str]:
    """The kinds that a comparison needs: a bank, and source and small model where a rival takes from them."""
    taken = {SOURCES.get(name) for name in config.rivals} | {config.teacher}
    return [BANK, *(kind for kind in (SOURCE, SMALL) if kind in taken)]


def given(config: CompareConfig, task: Task, model: str) -> dict[str, Origin]:
    """Those that the user gives.

    Raises:
        ValueError, OSError: a folder holds none, or one of another task or model.
    """
    found = {
        kind: read_origin(kind, folder) for kind in needed(config) if (folder := getattr(config, kind)) is not None
    }
    for kind, origin in found.items():
        _check_family(kind, origin, task, model)
    return found


def check_targets(config: CompareConfig, task: Task, model: str, bank: Origin | None) -> None:
    """Raise ``ValueError`` if a target, or a smaller size that a bank yet to come is to learn, cannot be built, has other
    heads than the bank or layers of a role that it lacks.
    """
    full = bank.arguments if bank else task.arguments(model, _size(BANK, config))
    sizes = config.targets if bank else [*config.targets, *(config.smaller or [])]
    with torch.device("meta"):
        network = create_model(model, **full)
        heads, roles = head_dims(network), by_role(find_layers(network, None)).keys()
        for size in sizes:
            network = create_model(model, **task.arguments(model, parse_size(size)))
            require_same_heads(network, heads, target_name=size, source_name="the bank")
            if missing := by_role(find_layers(network, None)).keys() - roles:
                raise ValueError(
                    f"targets and smaller sizes must have roles of the bank's, which lacks {min(missing)!r} of {size}"
                )


def work(kind: str, config: CompareConfig, task: Task, model: str) -> float:
    """What making one costs, in the units of jobs."""
    return config.pretrain_steps * training_flops(model, task.arguments(model, _size(kind, config)))


def usual(task: Task, model: str) -> dict[str, Any]:
    """What a size is where it does not say, patches that suit the data among it; not what only the data decide."""
    arguments = {**default_arguments(model), **task.arguments(model, {})}
    return {name: value for name, value in arguments.items() if name not in OF_DATA}


def common(config: CompareConfig, task: Task, model: str, size: Size) -> dict[str, Any]:
    """Arguments that all jobs have."""
    return {"task": {**config.task_arguments, "data": task.name}, "model": model, "size": size}


def making(kind: str, config: CompareConfig, task: Task, model: str, teacher: Origin | None) -> Job:
    """The job that trains one; a bank learns from ``teacher``, if there is one."""
    paths: dict[str, Path] = {}
    every = max(1, config.pretrain_steps // 20)
    settings: dict[str, Any] = {
        "steps": config.pretrain_steps,
        "batch_size": config.batch_size,
        "evaluate_every": every,
        "lr": config.pretrain_lr if kind == BANK else config.source_lr,
        **config.precision,
    }
    size = _size(kind, config)
    arguments = {**common(config, task, model, size), "settings": settings}
    if kind == BANK:
        shape = None if config.template_shape is None else list(config.template_shape)
        settings |= {"full_share": config.full_share, "spec": {"templates": config.templates, "template_shape": shape}}
        arguments["smaller"] = [parse_size(each) for each in config.smaller or []]
        if teacher is not None:
            arguments["teacher"], paths["teacher"] = teacher.digest, teacher.folder
    function = jobs.make_bank if kind == BANK else jobs.make_source
    return Job(kind, function, arguments, paths, work=work(kind, config, task, model))


def _size(kind: str, config: CompareConfig) -> Size:
    return parse_size({BANK: config.size, SOURCE: config.source_size, SMALL: config.small_size}[kind])


def read_origin(kind: str, folder: Path, seconds: float | None = None) -> Origin:
    """One that is on disk; raises ``ValueError``, ``OSError`` where it is not."""
    if kind == BANK:
        source = TemplateBank.from_pretrained(folder).source
        if source is None:
            raise ValueError(f"bank must hold a pre-trained model's scalers too, but {folder} has none")
        identity = digest(folder / "bank.safetensors") + digest(folder / "source.safetensors")
        arguments, flops = source.config.get("arguments", {}), source.config.get("training_flops", 0.0)
        smaller = tuple(source.config.get("smaller", ()))
        return Origin(folder, identity, flops, seconds, None, 0.0, source.config.get("model", ""), arguments, smaller)
    network, saved = load_model(folder)
    answer = training_flops(saved["model"], saved["arguments"]) / 3
    identity, flops = digest(folder / "model.safetensors"), saved.get("training_flops", 0.0)
    return Origin(folder, identity, flops, seconds, network, answer, saved["model"], saved["arguments"])


def _check_family(kind: str, origin: Origin, task: Task, model: str) -> None:
    """Raise ``ValueError`` if what was given cannot have been made for this task; a teacher may be another model."""
    if kind == BANK and origin.model != model:
        raise ValueError(
            f"bank must be of the targets' model, {model}, but {origin.folder} is of {origin.model or 'none'}"
        )
    check_built_with(kind, origin.folder, origin.arguments, of_data(task, model))
