"""What worker processes of a comparison do; see ``Job`` for how they are called. ``task`` is as ``load_task`` takes it."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from functools import lru_cache
from math import isfinite
from pathlib import Path
from typing import Any, TypeVar

from torch import nn

from weit.bank import BankSpec, TemplateBank
from weit.by_name import build, made_for, pretrain_bank, start_from_bank, train_dense
from weit.engine import TrainConfig
from weit.engine.processes import training_device
from weit.engine.run_folder import CannotResume
from weit.models import load_model, save_model
from weit.models.sizes import training_flops
from weit.pretrain import PretrainConfig
from weit.rivals import RIVALS
from weit.tasks import Size, Task, load_task

Result = TypeVar("Result")
Paths = dict[str, Path]
Report = Callable[[float], None]
"""Takes the share of the job that is done."""


# Read once a worker: the files of a data set take longer than many a job.
_load = lru_cache(maxsize=1)(load_task)


def make_bank(
    folder: Path,
    paths: Paths,
    report: Report,
    *,
    task: dict[str, Any],
    model: str,
    size: Size,
    smaller: list[Size],
    settings: dict[str, Any],
    teacher: str | None = None,
) -> dict[str, float | None]:
    """Pre-train a bank into ``folder``; with ``teacher``, a digest, it distils from the model at ``paths["teacher"]``."""
    settings = {**_checkpoints(settings), "spec": BankSpec.of(settings.get("spec", {}))}
    config, loaded = PretrainConfig(**settings), _load(**task)
    learned: dict[str, Any] = {"teacher": paths.get("teacher"), "on_evaluate": _Ticks(report, config)}

    def make(**run: Any) -> TemplateBank:
        return pretrain_bank(loaded, model, size, smaller, config, **learned, **run)

    bank, seconds = _resumable(make, _run_folder(folder), task)
    bank.save_pretrained(folder)
    shutil.rmtree(_run_folder(folder), ignore_errors=True)
    return {"seconds": seconds, "template_numbers": bank.num_parameters()}


def make_source(
    folder: Path,
    paths: Paths,
    report: Report,
    *,
    task: dict[str, Any],
    model: str,
    size: Size,
    settings: dict[str, Any],
) -> dict[str, float | None]:
    """Train a dense model for rivals to take from, into ``folder``."""
    config, loaded = TrainConfig(**_checkpoints(settings)), _load(**task)
    arguments, progress = loaded.arguments(model, size), _Ticks(report, config)

    def make(settings: dict[str, Any], **run: Any) -> nn.Module:
        network = build(loaded, model, size, config.seed).to(training_device())
        settings = {**settings, "model": model, "arguments": arguments}
        train_dense(loaded, network, config, evaluate=lambda _: progress(), settings=settings, **run)
        return network

    network, seconds = _resumable(make, _run_folder(folder), task)
    flops = config.steps * config.batch_size * training_flops(model, arguments)
    save_model(network, folder, model, arguments, **made_for(loaded), training_flops=flops)
    shutil.rmtree(_run_folder(folder), ignore_errors=True)
    return {"seconds": seconds, **loaded.evaluate(network, "validation", quick=True)}


def _checkpoints(settings: dict[str, Any]) -> dict[str, Any]:
    """So that an interruption loses a tenth of a long run, and a short one does not spend its time on them."""
    return {"checkpoint_every": max(200, settings["steps"] // 10), **settings}


def _run_folder(folder: Path) -> Path:
    """Of the training whose result goes to ``folder``; it is there until that is."""
    return folder.with_name(f"{folder.name}-run")


def _resumable(make: Callable[..., Result], run_dir: Path, task: dict[str, Any]) -> tuple[Result, float | None]:
    """What ``make`` trains, and the seconds it took: ``None`` if it went on with a run that had been interrupted.

    A run with other settings, or one that is damaged, gives way to a new one.
    """
    started = time.perf_counter()
    run: dict[str, Any] = {"run_dir": run_dir, "settings": {"task": task}, "progress": False}
    if run_dir.exists():
        try:
            return make(**run, resume=True), None
        except CannotResume:
            shutil.rmtree(run_dir)
    return make(**run), time.perf_counter() - started


def make_start(
    folder: Path,
    paths: Paths,
    report: Report,
    *,
    task: dict[str, Any],
    model: str,
    size: Size,
    bank: str,
    **settings: Any,
) -> dict[str, float]:
    """Initialise a dense model from the bank at ``paths["bank"]``, whose digest is ``bank``, into ``folder``.

    Nothing is written if the loss becomes infinite: ``{"diverged": True}``.
    """
    loaded, pretrained = _load(**task), TemplateBank.from_pretrained(paths["bank"])
    started = time.perf_counter()
    try:
        network = start_from_bank(loaded, pretrained, model, size, **settings)
    except FloatingPointError:
        return {"seconds": time.perf_counter() - started, "diverged": True}
    seconds = time.perf_counter() - started
    save_model(network, folder, model, loaded.arguments(model, size), **made_for(loaded))
    return {"seconds": seconds}


def try_rate(folder: Path, paths: Paths, report: Report, **cell: Any) -> dict[str, float | None]:
    """What one model scores, quickly on the validation split, after it was trained from one start as ``train_cell`` does.

    ``None`` if its loss or score becomes infinite: too high a learning rate is an answer, and must not end the comparison.
    """
    try:
        loaded, config, network = begin_cell(paths, **cell)
        network.to(training_device())
        progress = _Ticks(report, config)
        train_dense(loaded, network, config, evaluate=lambda _: progress(), progress=False)
    except FloatingPointError:
        return {"score": None}
    score = loaded.evaluate(network, "validation", quick=True)[loaded.metrics[0].name]
    return {"score": score if isfinite(score) else None}


def train_cell(folder: Path, paths: Paths, report: Report, **cell: Any) -> dict[str, Any]:
    """Train one model from one start: its learning curve, measured quickly on the test split, and what it scores at the
    end on the test split in full.

    ``cell`` is as ``begin_cell`` takes it. A run whose loss or score becomes infinite ends with the worst score that it had
    on the way; one whose rival finds no start at all, or whose start has no finite scores, keeps the score of a fresh model.
    """
    try:
        loaded, config, network = begin_cell(paths, **cell)
        name = loaded.metrics[0].name
        curve = [_test_scores(loaded, network.to(training_device()), quick=True)[name]]
    except FloatingPointError:
        loaded, config, network = begin_cell({}, **{**cell, "initializer": "scratch", "start": {}})
        score = _test_scores(loaded, network.to(training_device()), quick=True)[loaded.metrics[0].name]
        return _left_by_cell(loaded, config, network, [score], None, 0.0)
    progress = _Ticks(report, config)

    def evaluate(_: nn.Module) -> dict[str, float]:
        curve.append(_test_scores(loaded, network, quick=True)[name])
        return progress()

    final, started = None, time.perf_counter()
    try:
        train_dense(loaded, network, config, evaluate=evaluate, progress=False)
        seconds = time.perf_counter() - started
        final = _test_scores(loaded, network, quick=False)
    except FloatingPointError:
        seconds = time.perf_counter() - started
    return _left_by_cell(loaded, config, network, curve, final, seconds)


def _test_scores(task: Task, network: nn.Module, quick: bool) -> dict[str, float]:
    found = task.evaluate(network, "test", quick=quick)
    if not all(map(isfinite, found.values())):
        raise FloatingPointError(f"scores became {found}")
    return found


def _left_by_cell(
    task: Task,
    config: TrainConfig,
    network: nn.Module,
    curve: list[float],
    final: dict[str, float] | None,
    seconds: float,
) -> dict[str, Any]:
    """The result of a cell; without ``final`` scores the worst so far stands for them and for the rest of the curve."""
    steps = [*range(0, config.steps, config.evaluate_every), config.steps]
    if final is None:
        worst = min(curve) if task.metrics[0].higher else max(curve)
        curve = [*curve, *[worst] * (len(steps) - len(curve))]
        final = {task.metrics[0].name: worst}
    return {
        "curve": list(zip(steps, curve, strict=True)),
        "test": final,
        "seconds": seconds,
        "parameters": sum(parameter.numel() for parameter in network.parameters()),
    }


def begin_cell(
    paths: Paths,
    *,
    task: dict[str, Any],
    model: str,
    size: Size,
    initializer: str,
    start: dict[str, Any],
    settings: dict[str, Any],
) -> tuple[Task, TrainConfig, nn.Module]:
    """The task, how to train on it, and the model to train.

    A model that was initialised before is at ``paths["start"]``, the trained one that a rival takes from at
    ``paths["source"]``; ``start`` says what went into them, and under ``"learn"`` the settings of a rival that learns.
    """
    loaded, config = _load(**task), TrainConfig(**settings)
    if "start" in paths:
        return loaded, config, load_model(paths["start"])[0]
    source = load_model(paths["source"])[0] if "source" in paths else None
    learning = dict(start.get("learn", {}))
    if learning:
        learning |= {"data": loaded.train, "loss": loaded.loss}
        if initializer != "ligo":  # which learns from the data alone
            learning["distance"] = loaded.distance
    network = build(loaded, model, size, config.seed)
    return loaded, config, RIVALS[initializer](network, source, seed=config.seed, **learning)


class _Ticks:
    """Turns the evaluations of a run into the share of it that is done; adds nothing to the run's records."""

    def __init__(self, report: Report, config: TrainConfig) -> None:
        self._report, self._each, self._done = report, config.evaluate_every / config.steps, 0.0

    def __call__(self) -> dict[str, float]:
        self._done += self._each
        self._report(min(1.0, self._done))
        return {}
