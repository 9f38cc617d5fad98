"""The whole method on real images: one pre-training, models of several sizes from it, beside other ways to start."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from weit.compare import CompareConfig, jobs
from weit.compare.config import Grid, require
from weit.compare.pool import Job, Pool
from weit.compare.run import Comparison, compare
from weit.files import atomic_write
from weit.models.sizes import model_arguments, parse_size, training_flops
from weit.report import table, verdicts, write_report
from weit.tasks import Task, load_task

_MARK = "weit-demo.json"  # what tells a demo's folder from anybody else's


@dataclass(frozen=True)
class DemoConfig(Grid):
    """The grid of the comparison, and the two pre-trainings before it.

    Args:
        size: of the model that the bank is pre-trained with.
        smaller: sizes that the pre-training also runs at.
        source_size: of the dense model that weight selection takes from; at least as large as every target.
        pretrain_steps: steps of either pre-training.
        pretrain_lr: learning rate of the bank's pre-training.
        source_lr: learning rate of the dense model's.
        fresh: delete what an earlier demo left in the folder, and start over.

    Raises:
        ValueError: a field out of range.
    """

    out: Path = Path("weit-demo")
    size: str = "64x6"
    smaller: list[str] = field(default_factory=lambda: ["48x6", "32x6", "64x3", "48x4", "32x3"])
    source_size: str = "96x9"
    pretrain_steps: int = 600
    pretrain_lr: float = 4e-3
    source_lr: float = 2e-3
    fresh: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.pretrain_steps > 0, "pretrain_steps", "at least 1", self.pretrain_steps)
        for size in (self.size, *self.smaller):
            parse_size(size)
        source = parse_size(self.source_size)
        for target in self.targets:
            larger = [name for name, value in parse_size(target).items() if value > source.get(name, 0)]
            require(not larger, "source_size", f"at least as large as every target, such as {target}", self.source_size)


def run_demo(config: DemoConfig) -> Comparison:
    """Run the demo into ``config.out``; prints what it does, the table, and where the report is.

    Raises:
        FileExistsError: the folder holds something that is no demo's.
        RuntimeError: a job failed, or a fresh process did not initialise the same weights.
    """
    begun = time.perf_counter()
    task = load_task(config.data, config.root)
    _open_folder(config)
    _say(f"{config.data}: {len(task.train):,} training images; {config.processes} worker processes; into {config.out}/")
    settings = _compare_config(config)
    with Pool(config.out, config.processes) as pool:
        seconds = _pretrain(config, task, pool)
        comparison = compare(settings, pool)
    same = _same_in_fresh_process(settings)
    minutes = (time.perf_counter() - begun) / 60
    notes = [
        f"One thread took {seconds[0]:.0f} s to pre-train the bank, {seconds[1]:.0f} s for the dense model that weight "
        f"selection takes from, and {comparison.fit_seconds:.0f} s to fit the scalers of all targets and seeds.",
        same,
    ]
    report = write_report(comparison, config.out, notes)
    _say("", table(comparison), "", *verdicts(comparison), *notes, "")
    _say(f"{minutes:.1f} minutes. Report: {report}", f"Bank: {settings.bank}")
    return comparison


def _open_folder(config: DemoConfig) -> None:
    out = config.out
    if out.exists() and any(out.iterdir()) and not (out / _MARK).is_file():
        raise FileExistsError(f"out must be new or the folder of an earlier demo: {out} holds something else")
    if config.fresh and out.exists():
        shutil.rmtree(out)
    plain = {name: str(value) if isinstance(value, Path) else value for name, value in asdict(config).items()}
    atomic_write(out / _MARK, json.dumps(plain, indent=1) + "\n")


def _compare_config(config: DemoConfig) -> CompareConfig:
    grid = {each.name: getattr(config, each.name) for each in fields(Grid)}
    return CompareConfig(**grid, bank=config.out / "bank", source=config.out / "source")


def _pretrain(config: DemoConfig, task: Task, pool: Pool) -> list[float]:
    """The bank, and beside it the dense model for weight selection; the seconds that each took."""
    common: dict[str, Any] = {"data": config.data, "model": config.model}
    every = max(1, config.pretrain_steps // 20)
    schedule = {"steps": config.pretrain_steps, "batch_size": config.batch_size, "evaluate_every": every}
    size, source = parse_size(config.size), parse_size(config.source_size)
    paths = {} if config.root is None else {"root": config.root}
    bank = Job(
        "bank",
        jobs.make_bank,
        {**common, "size": size, "smaller": [parse_size(each) for each in config.smaller],
         "settings": {**schedule, "lr": config.pretrain_lr}},
        paths,
        work=training_flops(config.model, model_arguments(task, config.model, size)),
    )  # fmt: skip
    dense = Job(
        "source",
        jobs.make_source,
        {**common, "size": source, "settings": {**schedule, "lr": config.source_lr}},
        paths,
        work=training_flops(config.model, model_arguments(task, config.model, source)),
    )
    return [result["seconds"] for result in pool.run([bank, dense], "pre-training")]


def _same_in_fresh_process(config: CompareConfig) -> str:
    """Initialise the first target once more, by ``weit init`` in another process; says how the weights compare."""
    target = config.targets[0]
    ours, theirs = config.out / "starts" / f"{target}-seed0", config.out / "fresh-init"
    shutil.rmtree(theirs, ignore_errors=True)
    flags = ["--bank", config.bank, "--data", config.data, "--out", theirs, "--size", target, "--seed", 0,
             "--steps", config.fit_steps, "--lr", config.fit_lr, "--batch-size", config.batch_size]  # fmt: skip
    flags += ["--root", config.root] if config.root is not None else []
    command = [sys.executable, "-m", "weit", "init", *map(str, flags)]
    # One thread, as in the workers: sums in another order would differ in the last bits.
    found = subprocess.run(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True)
    if found.returncode:
        raise RuntimeError(f"weit init failed in a fresh process: {found.stderr.strip()}")
    first, second = (load_file(folder / "model.safetensors") for folder in (ours, theirs))
    difference = max(float((first[name] - second[name]).abs().max()) for name in first)
    if difference > 1e-4:
        raise RuntimeError(f"weit init gave other weights in a fresh process: they differ by up to {difference:.2g}")
    exact = "bit for bit" if all(torch.equal(first[name], second[name]) for name in first) else f"to {difference:.1g}"
    return f"weit init in a fresh process made {target} from the saved bank: the same weights, {exact}."


def _say(*lines: str) -> None:
    print(*lines, sep="\n", flush=True)
