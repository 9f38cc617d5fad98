"""Runs a comparison: what starts are taken from, the starts, a learning rate for each target and start, all seeds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from weit.compare import jobs
from weit.compare.config import LEARNED, LONGER, SCRATCH, SOURCES, WEIT, CompareConfig
from weit.compare.pool import Job, Pool
from weit.compare.prepare import BANK, Origin, common, prepare
from weit.compare.summary import Rates, Row, best_rates, kind_of, summarize
from weit.models import create_model
from weit.models.sizes import parse_size, training_flops
from weit.rivals import RIVALS
from weit.tasks import Metric, Task


@dataclass(frozen=True)
class Comparison:
    """All results.

    Attributes:
        data, model: what was compared on, by name.
        metrics: of the task; the first one decides.
        rows: one for each target.
        pretraining: floating-point operations of the pre-training that each start builds on.
        pretrained: arguments of the model behind the bank.
        seconds: one thread's time for each of the things that were made before the first cell.
    """

    config: CompareConfig
    data: str
    model: str
    metrics: tuple[Metric, ...]
    rows: list[Row]
    pretraining: dict[str, float]
    pretrained: dict[str, Any]
    seconds: dict[str, float]


def compare(config: CompareConfig, pool: Pool | None = None, *, flags: Mapping[str, Any] | None = None) -> Comparison:
    """Run every job that ``config.out`` does not hold yet, and summarise.

    Args:
        pool: workers to use, which write to ``config.out``; new ones if not given.
        flags: how the command line was called; kept in ``config.yaml`` from before the first job on.

    Raises:
        ValueError, OSError: bad settings, data, bank or source, before any cell runs.
        RuntimeError: a cell failed; finished ones are kept.
    """
    task = config.task()
    model = config.model or task.model
    sizes = {target: parse_size(target) for target in config.targets}
    for size in sizes.values():
        create_model(model, **task.arguments(model, size))  # what cannot be built is said before anything is trained
    if pool is not None:
        return _Plan(config, task, model, prepare(config, task, model, pool, flags)).run(pool)
    with Pool(config.out, config.processes) as own:
        return _Plan(config, task, model, prepare(config, task, model, own, flags)).run(own)


def cell_jobs(comparison: Comparison, pool: Pool) -> dict[tuple[str, str, int], Job]:
    """The job behind every cell of a comparison: target, start and seed → what ``jobs.begin_cell`` begins with.

    Raises:
        ValueError, OSError, RuntimeError: as ``prepare``, which reads what ``comparison.config.out`` holds.
    """
    config = comparison.config
    task = config.task()
    plan = _Plan(config, task, comparison.model, prepare(config, task, comparison.model, pool))
    return {
        (row.target, name, seed): plan.cell(row.target, name, outcome.lr, outcome.start_lr, seed)
        for row in comparison.rows
        for name, outcome in row.outcomes.items()
        for seed in range(config.seeds)
    }


def start_name(target: str, lr: float, seed: int) -> str:
    """Where a comparison keeps a model that was initialised from the bank, its scalers fitted at the rate ``lr``."""
    return f"starts/{target}-lr{lr:g}-seed{seed}"


class _Plan:
    """A checked configuration and the jobs that follow from it."""

    def __init__(self, config: CompareConfig, task: Task, model: str, origins: dict[str, Origin]) -> None:
        self.config, self.task, self.model, self.origins = config, task, model, origins
        self.sizes = {target: parse_size(target) for target in config.targets}
        arguments = {target: task.arguments(model, size) for target, size in self.sizes.items()}
        self.item_flops = {target: training_flops(model, each) for target, each in arguments.items()}
        self.pretraining = {name: self._pretraining(name) for name in config.starts}
        self.absent: dict[tuple[str, str], str] = {}
        for name in config.rivals:
            if name == LONGER:
                continue
            network = self.origins[SOURCES[name]].network if name in SOURCES else None
            for target, each in arguments.items():
                try:  # without learning that takes no time
                    steps = {"steps": 0} if name in LEARNED else {}
                    RIVALS[name](create_model(model, **each), network, **steps)
                except ValueError as error:
                    self.absent[target, name] = str(error)

    def run(self, pool: Pool) -> Comparison:
        config = self.config
        seeds = range(config.seeds)
        chosen = [name for name in config.starts if name != LONGER]
        pairs = [(target, name) for target in self.sizes for name in chosen if (target, name) not in self.absent]
        rates = self._rates(pairs, pool)
        if LONGER in config.rivals:
            rates |= {(target, LONGER): rates[target, SCRATCH] for target in self.sizes}
        own = {target: rates[target, WEIT][1] for target in self.sizes}
        fitted = pool.run(
            [self._start(each, seed, own[each]) for each in self.sizes for seed in seeds], "fitting scalers"
        )
        if any("diverged" in result for result in fitted):
            raise RuntimeError("fitting scalers diverged at the rates of fit_lrs; lower ones may help")
        cells = {(*pair, seed): self.cell(*pair, *each, seed) for pair, each in rates.items() for seed in seeds}
        results = dict(zip(cells, pool.run(list(cells.values()), "seeds"), strict=True))
        rows = []
        for target, size in self.sizes.items():
            present = [name for name in config.starts if (target, name) not in self.absent]
            outcomes = {
                name: (rates[target, name], [results[target, name, seed] for seed in seeds]) for name in present
            }
            extra = {name: self._extra_steps(target, name) for name in present}
            price = self.item_flops[target] * config.batch_size
            absent = {name: reason for (where, name), reason in self.absent.items() if where == target}
            kind = kind_of(size, self.origins[BANK].arguments, self.origins[BANK].smaller)
            rows.append(summarize(target, kind, price, outcomes, extra, self.task.metrics, absent))
        seconds = {kind: origin.seconds for kind, origin in self.origins.items() if origin.seconds is not None}
        return Comparison(
            config,
            self.task.name,
            self.model,
            self.task.metrics,
            rows,
            self.pretraining,
            self.origins[BANK].arguments,
            {**seconds, "fitting": sum(each["seconds"] for each in fitted)},
        )

    def _rates(self, pairs: list[tuple[str, str]], pool: Pool) -> dict[tuple[str, str], Rates]:
        """The learning rates of each target and start, while it trains and before: the best of a trial each, first seed."""
        grids = {
            pair: [(lr, own) for lr in self.config.lrs for own in self.config.own_rates(pair[1])] for pair in pairs
        }
        tried = [(*pair, *rates) for pair, grid in grids.items() for rates in grid if len(grid) > 1]
        starts = {(target, own): self._start(target, 0, own) for target, name, _, own in tried if name == WEIT and own}
        fitted = pool.run(list(starts.values()), "fitting scalers at each rate")
        lost = {key for key, result in zip(starts, fitted, strict=True) if "diverged" in result}
        tried = [
            (target, name, lr, own) for target, name, lr, own in tried if name != WEIT or (target, own) not in lost
        ]
        found = pool.run([self._trial(*each) for each in tried], "learning rates")
        scores = {each: result["score"] for each, result in zip(tried, found, strict=True)}
        metric = self.task.metrics[0]
        return {
            pair: best_rates({rates: scores.get((*pair, *rates)) for rates in grid}, metric)
            for pair, grid in grids.items()
        }

    def _pretraining(self, name: str) -> float:
        """Operations that were spent before a target is known."""
        if name == WEIT:
            return self.origins[BANK].flops
        if name not in SOURCES:
            return 0.0
        origin = self.origins[SOURCES[name]]
        if name == "tleg":  # the same learngene for all targets, learned at the size of the source from its answers
            return origin.flops + 4 * origin.answer_flops * self.config.fit_steps * self.config.batch_size
        return origin.flops

    def _extra_steps(self, target: str, name: str) -> float:
        """Work before step 0 in training steps of the target: fitting, and an equal share of the pre-training."""
        share = self.pretraining[name] / sum((other, name) not in self.absent for other in self.sizes)
        fitting = float(self.config.fit_steps if name in (WEIT, "ligo", "distillation") else 0)
        if name == "distillation":
            fitting *= 1 + self.origins[SOURCES[name]].answer_flops / self.item_flops[target]
        return fitting + share / (self.item_flops[target] * self.config.batch_size)

    def _start(self, target: str, seed: int, lr: float | None) -> Job:
        assert lr is not None
        config, bank = self.config, self.origins[BANK]
        own = {"steps": config.fit_steps, "lr": lr, "batch_size": config.batch_size, "seed": seed}
        return Job(
            name=start_name(target, lr, seed),
            function=jobs.make_start,
            arguments={**self._common(target), "bank": bank.digest, **own, **config.precision},
            paths={"bank": bank.folder},
            work=self.item_flops[target] * config.fit_steps,
        )

    def _trial(self, target: str, name: str, peak: float, start_lr: float | None) -> Job:
        cell = self.cell(target, name, peak, start_lr, 0)
        before = "" if start_lr is None else f"-after-lr{start_lr:g}"
        return replace(cell, name=f"rates/{name}/{target}-lr{peak:g}{before}", function=jobs.try_rate)

    def cell(self, target: str, name: str, peak: float, start_lr: float | None, seed: int) -> Job:
        """Training of one target at the peak rate ``peak`` from a start; ``start_lr``: at which that learned, if it did."""
        config = self.config
        steps = config.steps + (round(self._extra_steps(target, WEIT)) if name == LONGER else 0)
        start: dict[str, Any] = {}
        found: dict[str, Path] = {}
        if name == WEIT:
            begun = self._start(target, seed, start_lr)
            start, found["start"] = begun.arguments, config.out / begun.name
        elif name in SOURCES:
            origin = self.origins[SOURCES[name]]
            start, found["source"] = {"source": origin.digest}, origin.folder
        if name in LEARNED:
            own = {"steps": config.fit_steps, "batch_size": config.batch_size, "lr": start_lr}
            start["learn"] = {**own, **config.precision}
        settings = {
            "steps": steps,
            "batch_size": config.batch_size,
            "lr": peak,
            "seed": seed,
            # A longer curve has no more points than the others: policies take longer to score than to train.
            "evaluate_every": -(-config.evaluate_every * steps // config.steps),
            **config.precision,
        }
        return Job(
            name=f"cells/{name}/{target}-lr{peak:g}-seed{seed}",
            function=jobs.train_cell,
            arguments={
                **self._common(target),
                "initializer": SCRATCH if name == LONGER else name,
                "start": start,
                "settings": settings,
            },
            paths=found,
            work=self.item_flops[target] * steps,
        )

    def _common(self, target: str) -> dict[str, Any]:
        return common(self.config, self.task, self.model, self.sizes[target])
