"""What the command line and the comparison do alike: build, pre-train, initialise and train models by name and size."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from weit.bank import TemplateBank
from weit.engine import Record, TrainConfig, train
from weit.engine.seeds import own_randomness
from weit.files import digest
from weit.initialize import initialize
from weit.masks import draw_size
from weit.models import create_model, load_model
from weit.models.sizes import training_flops
from weit.pretrain import PretrainConfig, pretrain
from weit.tasks import Size, Task

OF_DATA = ("img_size", "in_chans", "num_classes", "obs_dim", "act_dim", "context")
"""Arguments of models that the data decide; the others are sizes."""


def of_data(task: Task, model: str) -> dict[str, Any]:
    """Those arguments of ``model`` that the data of ``task`` decide."""
    return {name: value for name, value in task.arguments(model, {}).items() if name in OF_DATA}


def made_for(task: Task) -> dict[str, Any]:
    """Which task, but for where its data are: what banks, models and the settings of runs keep of it."""
    return {"family": task.family, "data": task.name, **task.options}


def check_built_with(argument: str, folder: Path, arguments: Mapping[str, Any], expected: Mapping[str, Any]) -> None:
    """Raise ``ValueError``, in words about ``argument``, if the model in ``folder`` was built with ``arguments`` that differ
    from those ``expected`` for a task.
    """
    for name, value in expected.items():
        if arguments.get(name, value) != value:
            found = f"{folder} has {name}={arguments[name]}"
            raise ValueError(f"{argument} must be made for this task, with {name}={value}, but {found}")


def build(task: Task, model: str, size: Size, seed: int) -> nn.Module:
    """A fresh model for the task; its numbers depend on ``seed`` alone."""
    with own_randomness(seed):
        return create_model(model, **task.arguments(model, size))


def pretrain_bank(
    task: Task,
    model: str,
    size: Size,
    smaller: Sequence[Size],
    config: PretrainConfig,
    *,
    teacher: Path | None = None,
    on_evaluate: Callable[[], object] | None = None,
    **run: Any,
) -> TemplateBank:
    """Pre-train a bank at ``size`` and the ``smaller`` sizes; it distils from the model in the folder ``teacher``, if any.

    ``run`` goes to ``pretrain`` (run_dir, resume, progress, settings).

    ``bank.source.config`` tells how to build the model again and what the pre-training cost: ``{"model", "arguments",
    "smaller", "training_flops"}`` and ``made_for(task)``. A step costs what one of a dense model of the size it ran at does,
    and the teacher's training and answers count too.
    """
    prices = [training_flops(model, task.arguments(model, each)) for each in (size, *smaller)]
    big, *small = (build(task, model, each, config.seed) for each in (size, *smaller))

    def evaluate(network: nn.Module) -> dict[str, float]:
        if on_evaluate is not None:
            on_evaluate()
        return _validate(task, network)

    arguments = task.arguments(model, size)
    sizes = {"model": model, "arguments": arguments, "smaller": list(smaller)}
    run["settings"] = {**sizes, **made_for(task), **run.get("settings", {})}
    learned: dict[str, Any] = {"loss": task.loss, "distance": task.distance}
    taught: float = 0
    if teacher is not None:
        learned["teacher"], saved = load_model(teacher)
        run["settings"]["teacher"] = digest(teacher / "model.safetensors")
        answers = training_flops(saved["model"], saved["arguments"]) / 3
        taught = saved.get("training_flops", 0) + config.steps * config.batch_size * answers
    bank = pretrain(big, task.train, config, smaller=small, evaluate=evaluate, **learned, **run)
    assert bank.source is not None
    drawn = (draw_size(config.seed, step, len(prices), config.full_share) for step in range(config.steps))
    bank.source.config = {
        **sizes,
        **made_for(task),
        "training_flops": config.batch_size * sum(prices[index] for index in drawn) + taught,
    }
    return bank


def start_from_bank(
    task: Task,
    bank: TemplateBank,
    model: str,
    size: Size,
    *,
    steps: int,
    lr: float | Sequence[float],
    batch_size: int,
    seed: int,
    **run: Any,
) -> nn.Module:
    """A dense model of that size that starts from ``bank``; the same for the same arguments and number of threads."""
    target = build(task, model, size, seed)
    data = task.train if steps else None
    return initialize(target, bank, data, steps, lr=lr, batch_size=batch_size, seed=seed, loss=task.loss, **run)


def train_dense(
    task: Task,
    network: nn.Module,
    config: TrainConfig,
    *,
    evaluate: Callable[[nn.Module], dict[str, float]] | None = None,
    **run: Any,
) -> list[Record]:
    """Train ``network`` on the task; ``run`` goes to ``train`` (run_dir, resume, progress, settings).

    ``evaluate`` is by default what the task measures on its validation split.
    """
    run["settings"] = {**made_for(task), **run.get("settings", {})}
    return train(network, task.train, config, loss=task.loss, evaluate=evaluate or partial(_validate, task), **run)


def _validate(task: Task, network: nn.Module) -> dict[str, float]:
    found = task.evaluate(network, "validation", quick=True)
    return {f"validation_{name}": value for name, value in found.items()}
