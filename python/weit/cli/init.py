"""Make a dense model of any size from a pre-trained bank; writes model.safetensors, config.json and how they came about.

The model is of the bank's own family, for the bank's own data if none are named; sizes that are not named, that of
images too, are as in the pre-trained model, and so is the size of attention heads.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass, field
from math import inf
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from jsonargparse import Namespace

from weit.bank import TemplateBank
from weit.by_name import OF_DATA, made_for, start_from_bank
from weit.cli.arguments import Parser, add_fields, flags_of, read_fields
from weit.cli.model import DataFlags, SizeFlags, model_arguments, scores
from weit.engine.config import take_whole
from weit.engine.held_out import HELD_OUT_LOSS
from weit.engine.run_folder import CHECKPOINTS, CONFIG, METRICS, read_records, write_flags
from weit.files import atomic_dir, refuse_foreign
from weit.fitting import FIT_RATES, configs_at, rate_folder
from weit.models.folder import FILES, write_model
from weit.models.sizes import at_other_size
from weit.report.curves import plot_run

RESUME = "nothing was written"
_FITTING = "fitting"  # the record of it, in the model's folder


@dataclass(frozen=True)
class InitFlags:
    """Where from, where to, and the fitting of scalers.

    Args:
        bank: folder of a bank that weit pretrain or weit demo wrote.
        out: folder for the model; one that is there gives way to the new one.
        steps: steps of scaler fitting; 0 for the first guess alone.
        lr: learning rates of scaler fitting, one or several; the one with the lowest loss on held-out items is taken.
        batch_size: items in a step.
        seed: of the data's order.
        mixed_precision: of the fitting: no, bf16 or fp16.
    """

    bank: Path
    out: Path
    steps: int = 150
    lr: list[float] = field(default_factory=lambda: list(FIT_RATES))
    batch_size: int = 64
    seed: int = 0
    mixed_precision: str = "no"

    def __post_init__(self) -> None:
        take_whole(self, "steps", 0)
        configs_at(self.lr, **self.how)

    @property
    def how(self) -> dict[str, Any]:
        """The fields of ``TrainConfig`` beside steps and rate."""
        return {"batch_size": self.batch_size, "seed": self.seed, "mixed_precision": self.mixed_precision}


def add_arguments(parser: Parser) -> None:
    for flags in (InitFlags, SizeFlags, DataFlags):
        add_fields(parser, flags)


def run(parser: Parser, given: Namespace) -> None:
    flags, sizes = read_fields(parser, given, InitFlags), read_fields(parser, given, SizeFlags)
    data = read_fields(parser, given, DataFlags)
    bank = TemplateBank.from_pretrained(flags.bank)
    if bank.source is None or not {"model", "arguments"} <= bank.source.config.keys():
        raise ValueError(f"bank must come with the model it was pre-trained in, but {flags.bank} names none")
    task, model = data.or_else(bank.source.config).task(parser), bank.source.config["model"]
    pretrained = bank.source.config["arguments"]
    known = {name: value for name, value in pretrained.items() if name not in OF_DATA}
    size = at_other_size(known, sizes.or_else({}))
    arguments = model_arguments(parser, task, model, size)
    fit: dict[str, Any] = {"steps": flags.steps, "lr": flags.lr, **flags.how}
    refuse_foreign(flags.out, [*FILES, CONFIG, _FITTING])
    flags.out.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix=f".{flags.out.name}.", dir=flags.out.parent) as beside:
        fitting = Path(beside, _FITTING)
        if flags.steps:
            fit["run_dir"] = fitting
        network = start_from_bank(task, bank, model, size, **fit, progress=True)
        for record in fitting.rglob(METRICS):
            shutil.rmtree(record.parent / CHECKPOINTS, ignore_errors=True)  # who fits again begins anew
            plot_run(record.parent)
        found = scores(task, network, "validation")
        with atomic_dir(flags.out, known=[_FITTING]) as folder:
            write_model(network, folder, model, arguments, **made_for(task))
            write_flags(folder, flags_of(given))
            if flags.steps:
                fitting.rename(folder / _FITTING)
    if flags.steps and len(set(flags.lr)) > 1:
        print(_rates_seen(flags))
    numbers = sum(parameter.numel() for parameter in network.parameters())
    print(f"{flags.out}: {model} {size}, {numbers:,} parameters; before training: {found}")


def _rates_seen(flags: InitFlags) -> str:
    """The held-out losses that the learning rate was chosen by."""
    losses = {}
    for lr in flags.lr:
        records = read_records(rate_folder(flags.out / _FITTING, lr) / METRICS)
        loss = records[-1].get(HELD_OUT_LOSS, inf) if records else inf
        losses[lr] = loss if loss < inf else inf  # NaN and none too: it diverged
    seen = ", ".join(f"{loss:.4g} at {lr:g}" for lr, loss in losses.items())
    return f"scalers fitted at {min(losses, key=losses.__getitem__):g}; held-out loss: {seen}"
