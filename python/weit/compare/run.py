"""Runs a comparison: starts, then a learning rate for each target and initialiser, then all seeds."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from weit.bank import TemplateBank
from weit.compare import jobs
from weit.compare.config import LEARNED, LONGER, SOURCES, WEIT, CompareConfig
from weit.compare.pool import Job, Pool
from weit.compare.summary import Row, best_lr, kind_of, summarize
from weit.models import create_model, load_model
from weit.models.sizes import model_arguments, parse_size, training_flops
from weit.recipes import digest
from weit.rivals import RIVALS
from weit.tasks import load_task


@dataclass(frozen=True)
class Comparison:
    """All results.

    Attributes:
        rows: one for each target.
        pretraining: floating-point operations of the pre-training that each initialiser builds on.
        pretrained: arguments of the model behind the bank.
        fit_seconds: one thread's time for fitting the scalers of all targets and seeds.
    """

    config: CompareConfig
    rows: list[Row]
    pretraining: dict[str, float]
    pretrained: dict[str, Any]
    fit_seconds: float


def compare(config: CompareConfig, pool: Pool | None = None) -> Comparison:
    """Run every cell that ``config.out`` does not hold yet, and summarise.

    Args:
        pool: workers to use, which write to ``config.out``; new ones if not given.

    Raises:
        ValueError, OSError: bad settings, data, bank or source, before any cell runs.
        RuntimeError: a cell failed; finished ones are kept.
    """
    plan = _Plan(config)
    if pool is not None:
        return plan.run(pool)
    with Pool(config.out, config.processes) as own:
        return plan.run(own)


class _Plan:
    """A checked configuration and the jobs that follow from it."""

    def __init__(self, config: CompareConfig) -> None:
        self.config = config
        task = load_task(config.data, config.root)
        self.sizes = {target: parse_size(target) for target in config.targets}
        arguments = {target: model_arguments(task, config.model, size) for target, size in self.sizes.items()}
        self.image_flops = {target: training_flops(config.model, each) for target, each in arguments.items()}
        self.pretraining: dict[str, float] = dict.fromkeys(config.initializers, 0.0)
        self.pretrained: dict[str, Any] = {}
        self.paths = {} if config.root is None else {"root": config.root}
        self.digests: dict[str, str] = {}
        if config.bank is not None and WEIT in config.initializers:
            source = TemplateBank.from_pretrained(config.bank).source
            if source is None:
                raise ValueError(f"bank must hold a pre-trained model's scalers too, but {config.bank} has none")
            self.pretrained = source.config.get("arguments", {})
            self.pretraining[WEIT] = source.config.get("training_flops", 0.0)
            self.digests["bank"] = digest(config.bank, "bank.safetensors") + digest(config.bank, "source.safetensors")
        self.answering = 0.0  # operations for the teacher's answer to an image
        self.absent: dict[tuple[str, str], str] = {}
        for name in config.initializers:
            if name in RIVALS and name != "scratch":
                self._prepare(name, arguments)

    def _prepare(self, name: str, arguments: dict[str, dict[str, Any]]) -> None:
        """Load what a rival takes from, and find out which targets it can serve: without learning that takes no time."""
        network = None
        if name in SOURCES:
            folder = _given(getattr(self.config, SOURCES[name]))
            network, saved = load_model(folder)
            self.pretraining[name] = saved.get("training_flops", 0.0)
            self.digests[SOURCES[name]] = digest(folder, "model.safetensors")
            forward = training_flops(saved["model"], saved["arguments"]) / 3
            if name == "distillation":
                self.answering = forward
            if name == "tleg":  # the same learngene for all targets, learned at the size of the source from its answers
                self.pretraining[name] += 4 * forward * self.config.fit_steps * self.config.batch_size
        for target, each in arguments.items():
            try:
                steps = {"steps": 0} if name in LEARNED else {}
                RIVALS[name](create_model(self.config.model, **each), network, **steps)
            except ValueError as error:
                self.absent[target, name] = str(error)
        if all((target, name) in self.absent for target in arguments):
            raise ValueError(f"{name} can serve no target: {self.absent[next(iter(arguments)), name]}")

    def run(self, pool: Pool) -> Comparison:
        config = self.config
        seeds = range(config.seeds)
        starts = (
            [self._start(target, seed) for target in self.sizes for seed in seeds]
            if WEIT in config.initializers
            else []
        )
        fitted = pool.run(starts, "fitting scalers")
        chosen = [name for name in config.initializers if name != LONGER]
        pairs = [(target, name) for target in self.sizes for name in chosen if (target, name) not in self.absent]
        grid = {(*pair, lr): self._cell(*pair, lr, 0) for pair in pairs for lr in config.lrs}
        tried = dict(zip(grid, pool.run(list(grid.values()), "learning rates"), strict=True))
        lrs = {
            (target, name): best_lr({lr: tried[target, name, lr]["validation"] for lr in config.lrs})
            for target, name in pairs
        }
        if LONGER in config.initializers:
            lrs |= {(target, LONGER): lrs[target, "scratch"] for target in self.sizes}
        cells = {(*pair, seed): self._cell(*pair, lr, seed) for pair, lr in lrs.items() for seed in seeds}
        results = dict(zip(cells, pool.run(list(cells.values()), "seeds"), strict=True))
        rows = []
        for target, size in self.sizes.items():
            present = [name for name in config.initializers if (target, name) not in self.absent]
            outcomes = {name: (lrs[target, name], [results[target, name, seed] for seed in seeds]) for name in present}
            extra = {name: self._extra_steps(target, name) for name in present}
            price = self.image_flops[target] * config.batch_size
            absent = {name: reason for (where, name), reason in self.absent.items() if where == target}
            rows.append(summarize(target, kind_of(size, self.pretrained), price, outcomes, extra, absent))
        return Comparison(config, rows, self.pretraining, self.pretrained, sum(each["seconds"] for each in fitted))

    def _extra_steps(self, target: str, initializer: str) -> float:
        """Work before step 0 in training steps of the target: fitting, and an equal share of the pre-training."""
        if initializer == LONGER:
            return 0.0
        share = self.pretraining[initializer] / sum((other, initializer) not in self.absent for other in self.sizes)
        fitting = float(self.config.fit_steps if initializer in (WEIT, "ligo", "distillation") else 0)
        if initializer == "distillation":
            fitting *= 1 + self.answering / self.image_flops[target]
        return fitting + share / (self.image_flops[target] * self.config.batch_size)

    def _steps(self, target: str, initializer: str) -> int:
        return self.config.steps + (round(self._extra_steps(target, WEIT)) if initializer == LONGER else 0)

    def _start(self, target: str, seed: int) -> Job:
        config = self.config
        fit = {"steps": config.fit_steps, "lr": config.fit_lr, "batch_size": config.batch_size, "seed": seed}
        return Job(
            name=f"starts/{target}-seed{seed}",
            function=jobs.make_start,
            arguments={**self._common(target), "bank": self.digests["bank"], **fit},
            paths={**self.paths, "bank": _given(config.bank)},
            work=self.image_flops[target] * config.fit_steps,
        )

    def _cell(self, target: str, initializer: str, lr: float, seed: int) -> Job:
        config, steps = self.config, self._steps(target, initializer)
        start: dict[str, Any] = {}
        paths = dict(self.paths)
        if initializer == WEIT:
            begun = self._start(target, seed)
            start, paths["start"] = begun.arguments, config.out / begun.name
        elif initializer in SOURCES:
            given = SOURCES[initializer]
            start, paths["source"] = {"source": self.digests[given]}, _given(getattr(config, given))
        if initializer in LEARNED:
            start["learn"] = {"steps": config.fit_steps, "batch_size": config.batch_size}
        settings = {
            "steps": steps,
            "batch_size": config.batch_size,
            "lr": lr,
            "seed": seed,
            "evaluate_every": config.evaluate_every,
        }
        return Job(
            name=f"cells/{initializer}/{target}-lr{lr:g}-seed{seed}",
            function=jobs.train_cell,
            arguments={
                **self._common(target),
                "initializer": "scratch" if initializer == LONGER else initializer,
                "start": start,
                "curve_images": config.curve_images,
                "settings": settings,
            },
            paths=paths,
            work=self.image_flops[target] * steps,
        )

    def _common(self, target: str) -> dict[str, Any]:
        return {"data": self.config.data, "model": self.config.model, "size": self.sizes[target]}


def _given(path: Path | None) -> Path:
    assert path is not None  # CompareConfig has seen to it
    return path
