"""What worker processes of a comparison do; see ``Job`` for how they are called."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

from torch import nn

from weit.bank import BankSpec, TemplateBank
from weit.engine import TrainConfig
from weit.models import load_model, save_model
from weit.models.sizes import model_arguments, training_flops
from weit.pretrain import PretrainConfig
from weit.recipes import Size, build, pretrain_bank, start_from_bank, train_dense
from weit.rivals import RIVALS
from weit.tasks import Task, load_task
from weit.tasks.classification import head

Paths = dict[str, Path]
Report = Callable[[float], None]
"""Takes the share of the job that is done."""


@lru_cache(maxsize=1)
def _task(data: str, root: Path | None) -> Task:
    """Read once a worker: the files of a data set take longer than many a job."""
    return load_task(data, root)


def make_bank(
    folder: Path,
    paths: Paths,
    report: Report,
    *,
    data: str,
    model: str,
    size: Size,
    smaller: list[Size],
    settings: dict[str, Any],
) -> dict[str, float]:
    """Pre-train a bank into ``folder``."""
    settings = {**settings, "spec": BankSpec.of(settings.get("spec", {}))}
    config = PretrainConfig(**settings)
    progress = _Ticks(report, config)
    started = time.perf_counter()
    bank = pretrain_bank(
        _task(data, paths.get("root")), model, size, smaller, config, on_evaluate=progress, progress=False
    )
    seconds = time.perf_counter() - started
    bank.save_pretrained(folder)
    return {"seconds": seconds, "template_numbers": bank.num_parameters()}


def make_source(
    folder: Path, paths: Paths, report: Report, *, data: str, model: str, size: Size, settings: dict[str, Any]
) -> dict[str, float]:
    """Train a dense model for rivals to take from, into ``folder``."""
    config, task = TrainConfig(**settings), _task(data, paths.get("root"))
    arguments = model_arguments(task, model, size)
    network, progress = build(task, model, size, config.seed), _Ticks(report, config)
    started = time.perf_counter()
    train_dense(task, network, config, evaluate=lambda _: progress(), progress=False)
    seconds = time.perf_counter() - started
    flops = config.steps * config.batch_size * training_flops(model, arguments)
    save_model(network, folder, model, arguments, training_flops=flops)
    return {"seconds": seconds, "accuracy": task.evaluate(network, task.validation)["accuracy"]}


def make_start(
    folder: Path, paths: Paths, report: Report, *, data: str, model: str, size: Size, bank: str, **settings: Any
) -> dict[str, float]:
    """Initialise a dense model from the bank at ``paths["bank"]``, whose digest is ``bank``, into ``folder``."""
    task, pretrained = _task(data, paths.get("root")), TemplateBank.from_pretrained(paths["bank"])
    started = time.perf_counter()
    network = start_from_bank(task, pretrained, model, size, **settings)
    seconds = time.perf_counter() - started
    save_model(network, folder, model, model_arguments(task, model, size))
    return {"seconds": seconds}


def train_cell(
    folder: Path,
    paths: Paths,
    report: Report,
    *,
    data: str,
    model: str,
    size: Size,
    initializer: str,
    start: dict[str, Any],
    curve_images: int,
    settings: dict[str, Any],
) -> dict[str, Any]:
    """Train one model from one start; its learning curve, and validation and test accuracy at the end.

    A model that was initialised before is at ``paths["start"]``, the trained one that a rival takes from at
    ``paths["source"]``; ``start`` says what went into them, and under ``"learn"`` the settings of a rival that learns.
    """
    task, config = _task(data, paths.get("root")), TrainConfig(**settings)
    if "start" in paths:
        network, _ = load_model(paths["start"])
    else:
        source = load_model(paths["source"])[0] if "source" in paths else None
        learning = {**start["learn"], "data": task.train, "loss": task.loss} if "learn" in start else {}
        network = RIVALS[initializer](build(task, model, size, config.seed), source, seed=config.seed, **learning)
    shown, progress = head(task.test, curve_images), _Ticks(report, config)
    curve = [task.evaluate(network, shown)["accuracy"]]

    def evaluate(network: nn.Module) -> dict[str, float]:
        curve.append(task.evaluate(network, shown)["accuracy"])
        return progress()

    started = time.perf_counter()
    try:
        train_dense(task, network, config, evaluate=evaluate, progress=False)
        final = {split: task.evaluate(network, getattr(task, split))["accuracy"] for split in ("validation", "test")}
    except FloatingPointError:  # too high a learning rate is an answer, and must not end the comparison
        final = {"validation": 0.0, "test": 0.0}
    steps = [*range(0, config.steps, config.evaluate_every), config.steps]
    curve = [*curve, *[0.0] * (len(steps) - len(curve))]
    return {
        "curve": list(zip(steps, [*curve[:-1], final["test"]], strict=True)),
        **final,
        "seconds": time.perf_counter() - started,
        "parameters": sum(parameter.numel() for parameter in network.parameters()),
    }


class _Ticks:
    """Turns the evaluations of a run into the share of it that is done; adds nothing to the run's records."""

    def __init__(self, report: Report, config: TrainConfig) -> None:
        self._report, self._each, self._done = report, config.evaluate_every / config.steps, 0.0

    def __call__(self) -> dict[str, float]:
        self._done += self._each
        self._report(min(1.0, self._done))
        return {}
