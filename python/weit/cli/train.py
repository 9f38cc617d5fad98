"""Train one dense model, fresh or from a folder that weit init wrote; keeps the record of the run."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from jsonargparse import Namespace

from weit.cli.arguments import Parser, add_fields, read_fields
from weit.cli.model import DataFlags, SizeFlags
from weit.engine import TrainConfig
from weit.models import load_model, save_model
from weit.models.sizes import model_arguments, training_flops
from weit.recipes import build, train_dense

RESUME = "the same command with --resume goes on from the last checkpoint"


@dataclass(frozen=True)
class TrainFlags:
    """What to train, and where to.

    Args:
        out: folder for the run; the model goes to its subfolder model.
        init: folder of a model to start from; a fresh one if not given.
        model: of a fresh one: vit, or timm:NAME or hf:NAME where installed.
        resume: go on from the last checkpoint in the folder.
    """

    out: Path
    init: Path | None = None
    model: str = "vit"
    resume: bool = False


def add_arguments(parser: Parser) -> None:
    for flags in (TrainFlags, SizeFlags, DataFlags, TrainConfig):
        add_fields(parser, flags)


def run(parser: Parser, given: Namespace) -> None:
    flags, sizes = read_fields(parser, given, TrainFlags), read_fields(parser, given, SizeFlags)
    data, config = read_fields(parser, given, DataFlags), read_fields(parser, given, TrainConfig)
    task = data.task()
    if flags.init is not None:
        if sizes != SizeFlags():
            parser.error("size, width and depth are those of the model that init names; leave them out")
        network, saved = load_model(flags.init)
        model, arguments = saved["model"], saved["arguments"]
    else:
        size = sizes.or_else({"width": 64, "depth": 6} if flags.model == "vit" else {})
        model, arguments = flags.model, model_arguments(task, flags.model, size)
        network = build(task, model, size, config.seed)
    train_dense(task, network, config, run_dir=flags.out, resume=flags.resume)
    flops = config.steps * config.batch_size * training_flops(model, arguments)
    save_model(network, flags.out / "model", model, arguments, training_flops=flops)
    found = {split: task.evaluate(network, getattr(task, split))["accuracy"] for split in ("validation", "test")}
    print(f"{flags.out / 'model'}: " + ", ".join(f"{split} {100 * value:.1f} %" for split, value in found.items()))
