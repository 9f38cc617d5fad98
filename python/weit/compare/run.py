"""Runs a comparison: what starts are taken from, the starts, a learning rate for each target and start, all seeds.

Each target and start is a line of jobs of its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from weit.compare import jobs
from weit.compare.config import LEARNED, LONGER, SCRATCH, SOURCES, WEIT, CompareConfig
from weit.compare.folder import held
from weit.compare.lines import Job, Line
from weit.compare.pool import Pool
from weit.compare.prepare import BANK, Origin, check_targets, common, given, making, needed, read_origin, usual, work
from weit.compare.summary import Rates, Row, best_rates, kind_of, summarize
from weit.engine.run_folder import write_flags
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
        seconds: one thread's time for each of the things that starts are taken from, and for the fitting of scalers.
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
        ValueError, OSError: bad settings, data, or a bank or model that was given, before anything is trained; ``out``
            holds something that is no comparison's, or another comparison is running in it.
        RuntimeError: a job failed, or scalers diverge at all rates; what was under way ends, what is finished is kept. Also
            a package that the model or the data need is missing.
    """
    task = config.task()
    model = config.model or task.model
    plan = _Plan(config, task, model)
    check_targets(config, task, model, plan.origins.get(BANK))
    with held(config.out):
        if flags is not None:
            write_flags(config.out, flags)
        if pool is not None:
            return plan.run(pool)
        with Pool(config.out, config.processes) as own:
            return plan.run(own)


def cell_jobs(comparison: Comparison, pool: Pool) -> dict[tuple[str, str, int], Job]:
    """The job behind every cell of a comparison: target, start and seed → what ``jobs.begin_cell`` begins with.

    Raises:
        ValueError, OSError, RuntimeError: as ``compare``; what it made first is read from ``comparison.config.out``.
    """
    config = comparison.config
    plan = _Plan(config, config.task(), comparison.model)
    pool.follow([plan.origin(kind) for kind in needed(config)], "pre-training")
    return {
        (row.target, name, seed): plan.cell(row.target, name, outcome.lr, outcome.start_lr, seed)
        for row in comparison.rows
        for name, outcome in row.outcomes.items()
        for seed in range(config.seeds)
    }


def start_name(target: str, lr: float, seed: int) -> str:
    """Where a comparison keeps a model that was initialised from the bank, its scalers fitted at the rate ``lr``."""
    return f"starts/{target}-lr{lr:g}-seed{seed}"


@dataclass(frozen=True)
class _Cells:
    """What came of a target and start: its rates and all seeds' results, or why the start cannot serve the target."""

    rates: Rates = (0.0, None)
    results: tuple[dict[str, Any], ...] = ()
    absent: str = ""
    fitting: float = 0.0  # seconds


class _Plan:
    """A checked configuration and the jobs that follow from it."""

    def __init__(self, config: CompareConfig, task: Task, model: str) -> None:
        self.config, self.task, self.model = config, task, model
        self.origins = given(config, task, model)
        self.sizes = {target: parse_size(target) for target in config.targets}
        self.arguments = {target: task.arguments(model, size) for target, size in self.sizes.items()}
        self.item_flops = {target: training_flops(model, each) for target, each in self.arguments.items()}

    def run(self, pool: Pool) -> Comparison:
        # WeiT's jobs wait for the longest and depend on each other most, so they go first; last go the cheapest cells.
        costly = sorted(self.sizes, key=lambda target: -self.item_flops[target])
        pairs = [(target, name) for name in reversed(self.config.starts) for target in costly]
        found = dict(zip(pairs, pool.follow([*map(self._cells, pairs)], "comparing", self._work()), strict=True))
        served = {name: sum(not found[target, name].absent for target in self.sizes) for name in self.config.starts}
        default = usual(self.task, self.model)
        rows = []
        for target, size in self.sizes.items():
            present = {name: found[target, name] for name in self.config.starts if not found[target, name].absent}
            outcomes = {name: (cells.rates, list(cells.results)) for name, cells in present.items()}
            extra = {name: self._extra_steps(target, name, served[name]) for name in present}
            price = self.item_flops[target] * self.config.batch_size
            absent = {name: reason for name in self.config.starts if (reason := found[target, name].absent)}
            kind = kind_of(size, self.origins[BANK].arguments, self.origins[BANK].smaller, default)
            rows.append(summarize(target, kind, price, outcomes, extra, self.task.metrics, absent))
        seconds = {kind: origin.seconds for kind, origin in self.origins.items() if origin.seconds is not None}
        return Comparison(
            self.config,
            self.task.name,
            self.model,
            self.task.metrics,
            rows,
            {name: self._pretraining(name) for name in self.config.starts},
            self.origins[BANK].arguments,
            {**seconds, "fitting": sum(cells.fitting for cells in found.values())},
        )

    def origin(self, kind: str) -> Line[Origin]:
        """The bank or the trained dense model that starts are taken from; made the first time, unless it was given."""
        if kind not in self.origins:
            taught = kind == BANK and self.config.teacher != "none"
            teacher = (yield from self.origin(self.config.teacher)) if taught else None
            job = making(kind, self.config, self.task, self.model, teacher)
            (result,) = yield [job]
            if kind not in self.origins:  # else another line waited for it too, and has read it
                self.origins[kind] = read_origin(kind, self.config.out / job.name, result["seconds"])
        return self.origins[kind]

    def _cells(self, pair: tuple[str, str]) -> Line[_Cells]:
        """All that one target and start takes, from its origin to the last seed."""
        target, name = pair
        if name in (WEIT, LONGER):
            yield from self.origin(BANK)
        elif name != SCRATCH and (reason := (yield from self._absent(target, name))):
            return _Cells(absent=reason)
        rates = yield from self._rates(target, SCRATCH if name == LONGER else name)
        seeds, seconds = range(self.config.seeds), 0.0
        if name == WEIT:
            fitted = yield [self._start(target, seed, rates[1]) for seed in seeds]
            if any("diverged" in result for result in fitted):
                raise RuntimeError("fitting scalers diverged at the rates of fit_lrs; lower ones may help")
            seconds = sum(result["seconds"] for result in fitted)
        results = yield [self.cell(target, name, *rates, seed) for seed in seeds]
        return _Cells(rates, tuple(results), fitting=seconds)

    def _absent(self, target: str, name: str) -> Line[str]:
        """Why a rival cannot serve a target, if it cannot."""
        network = (yield from self.origin(SOURCES[name])).network if name in SOURCES else None
        try:  # without learning that takes no time
            steps = {"steps": 0} if name in LEARNED else {}
            RIVALS[name](create_model(self.model, **self.arguments[target]), network, **steps)
        except ValueError as error:
            return str(error)
        return ""

    def _rates(self, target: str, name: str) -> Line[Rates]:
        """The learning rates of a target and start, while it trains and before: the best of a trial each, first seed."""
        grid = [(lr, own) for lr in self.config.lrs for own in self.config.own_rates(name)]
        if len(grid) == 1:
            return grid[0]
        lost: set[float | None] = set()
        if name == WEIT:
            rates = self.config.own_rates(name)
            fitted = yield [self._start(target, 0, own) for own in rates]
            lost = {own for own, result in zip(rates, fitted, strict=True) if "diverged" in result}
        tried = [(lr, own) for lr, own in grid if own not in lost]
        found = yield [self._trial(target, name, *each) for each in tried]
        scores = {each: result["score"] for each, result in zip(tried, found, strict=True)}
        return best_rates({each: scores.get(each) for each in grid}, self.task.metrics[0])

    def _work(self) -> float:
        """What all jobs may cost, as they count it: as if all starts served all targets, and none trained for longer."""
        config = self.config
        grids = {name: len(config.lrs) * len(config.own_rates(name)) for name in config.starts if name != LONGER}
        trials = sum(count for count in grids.values() if count > 1)
        fits = config.seeds + (len(config.own_rates(WEIT)) - 1 if grids[WEIT] > 1 else 0)
        steps = (trials + len(config.starts) * config.seeds) * config.steps + fits * config.fit_steps
        missing = [kind for kind in needed(config) if kind not in self.origins]
        made = sum(work(kind, config, self.task, self.model) for kind in missing)
        return made + steps * sum(self.item_flops.values())

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

    def _extra_steps(self, target: str, name: str, served: int) -> float:
        """Work before step 0 in training steps of the target: fitting, and an equal share of the pre-training.

        ``served``: how many targets share that.
        """
        share = self._pretraining(name) / served
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
        steps = config.steps + (round(self._extra_steps(target, WEIT, len(self.sizes))) if name == LONGER else 0)
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
