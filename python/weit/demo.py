"""The whole method on real images: one pre-training, models of several sizes from it, beside other ways to start."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from weit.compare import CompareConfig, Comparison, compare
from weit.compare.config import WEIT
from weit.compare.folder import check_folder, held
from weit.compare.prepare import BANK
from weit.compare.run import start_name
from weit.report import table, verdicts, write_report


@dataclass(frozen=True)
class DemoConfig(CompareConfig):
    """A comparison with usual settings for digits, and one rate of fitting, so that it takes minutes.

    Args:
        fresh: delete what an earlier demo left in the folder, and start over.

    Raises:
        ValueError: a field out of range.
    """

    out: Path = Path("weit-demo")
    fit_lrs: list[float] = field(default_factory=lambda: [1e-2])
    fresh: bool = False


def run_demo(config: DemoConfig, flags: Mapping[str, Any] | None = None) -> Comparison:
    """Run the demo into ``config.out``; prints what it does, the table, and where the report is. ``flags``: as ``compare``.

    Raises:
        FileExistsError: the folder holds something that is no comparison's.
        ValueError: ``fresh`` would delete a folder that another field names.
        RuntimeError: a job failed; or, once all is written, a fresh process did not initialise the same weights.
    """
    begun = time.perf_counter()
    task = config.task()
    _start_over(config)
    _say(f"{task.name}: {config.processes} worker processes; into {config.out}/")
    comparison = compare(config, flags=flags)
    minutes = (time.perf_counter() - begun) / 60
    same, note = _fresh_process(comparison)
    report = write_report(comparison, config.out, [note])
    _say("", table(comparison), "", *verdicts(comparison), note, "")
    _say(f"{minutes:.1f} minutes. Report: {report}", f"Bank: {config.bank or config.out / BANK}")
    if not same:
        raise RuntimeError(note)
    return comparison


def _start_over(config: DemoConfig) -> None:
    out = config.out
    check_folder(out)
    if config.fresh and out.exists():
        for name in ("root", "bank", "source", "small"):
            given = getattr(config, name)
            if given is not None and given.resolve().is_relative_to(out.resolve()):
                raise ValueError(f"{name} must lie elsewhere, as fresh deletes {out}: got {given}")
        with held(out):  # by nobody else
            shutil.rmtree(out)


def _fresh_process(comparison: Comparison) -> tuple[bool, str]:
    """Initialise the first target once more, by ``weit init`` in another process; whether the weights are the same, in words
    too.
    """
    config, target, lr = comparison.config, comparison.rows[0].target, comparison.rows[0].outcomes[WEIT].start_lr
    assert lr is not None  # of WeiT's starts
    ours, theirs = config.out / start_name(target, lr, 0), config.out / "fresh-init"
    shutil.rmtree(theirs, ignore_errors=True)
    bank = config.bank or config.out / BANK
    flags = ["--bank", bank, "--out", theirs, "--size", target, "--seed", 0,
             "--steps", config.fit_steps, "--lr", lr, "--batch-size", config.batch_size,
             "--mixed-precision", config.mixed_precision]  # fmt: skip
    for name, value in config.task_arguments.items():
        flags += [f"--{name.replace('_', '-')}", value] if value is not None else []
    command = [sys.executable, "-m", "weit", "init", *map(str, flags)]
    # One thread, as in the workers: sums in another order would differ in the last bits.
    found = subprocess.run(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True)
    if found.returncode:
        return False, f"weit init failed in a fresh process: {found.stderr.strip()}"
    first, second = (load_file(folder / "model.safetensors") for folder in (ours, theirs))
    difference = max(float((first[name] - second[name]).abs().max()) for name in first)
    if difference > 1e-4:
        return False, f"weit init gave other weights in a fresh process: they differ by up to {difference:.2g}."
    exact = "bit for bit" if all(torch.equal(first[name], second[name]) for name in first) else f"to {difference:.1g}"
    return True, f"weit init in a fresh process made {target} from the saved bank: the same weights, {exact}."


def _say(*lines: str) -> None:
    print(*lines, sep="\n", flush=True)
