"""Train one dense model, fresh or from a folder that weit init wrote; keeps the record of the run.

From a folder the data are those that its model was made for, if none are named.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jsonargparse import Namespace
from torch import nn

from weit.by_name import build, check_built_with, made_for, of_data, train_dense
from weit.cli.arguments import Parser, add_fields, flags_of, read_fields
from weit.cli.model import SIZE, DataFlags, SizeFlags, model_arguments, scores
from weit.engine import TrainConfig, is_main_process
from weit.files import digest, refuse_foreign
from weit.models import create_model, load_model, save_model
from weit.models.folder import FILES
from weit.models.sizes import training_flops
from weit.report import plot_run

RESUME = "the same command with --resume goes on from the last checkpoint"


@dataclass(frozen=True)
class TrainFlags:
    """What to train, and where to.

    Args:
        out: folder for the run; the model goes to its subfolder model.
        init: folder of a model to start from; a fresh one if not given.
        model: of a fresh one: see weit compare --help; the usual one of the family if not given.
        resume: go on from the last checkpoint in the folder.
    """

    out: Path
    init: Path | None = None
    model: str | None = None
    resume: bool = False


def add_arguments(parser: Parser) -> None:
    for flags in (TrainFlags, SizeFlags, DataFlags, TrainConfig):
        add_fields(parser, flags)


def run(parser: Parser, given: Namespace) -> None:
    flags, sizes = read_fields(parser, given, TrainFlags), read_fields(parser, given, SizeFlags)
    data, config = read_fields(parser, given, DataFlags), read_fields(parser, given, TrainConfig)
    if flags.init is not None:
        if sizes != SizeFlags() or flags.model is not None:
            parser.error("model, size, width and depth are those of the model that init names; leave them out")
        network, saved = load_model(flags.init)
        model, arguments = saved["model"], saved["arguments"]
        task = data.or_else(saved).task(parser)
        decided = of_data(task, model)
        if not _fits(network, model, {**arguments, **decided}):
            check_built_with("init", flags.init, arguments, decided)
        arguments = {**arguments, **decided}
    else:
        task = data.task(parser)
        model = flags.model or task.model
        size = sizes.or_else({} if ":" in model else SIZE)
        arguments = model_arguments(parser, task, model, size)
        network = build(task, model, size, config.seed)
    refuse_foreign(flags.out / "model", FILES)
    flops = config.steps * config.batch_size * training_flops(model, arguments)
    begun = None if flags.init is None else digest(flags.init / "model.safetensors")
    settings = {"model": model, "arguments": arguments, "init": begun}
    run: dict[str, Any] = {"run_dir": flags.out, "resume": flags.resume, "settings": settings, "flags": flags_of(given)}
    train_dense(task, network, config, **run)
    if not is_main_process():
        return
    save_model(network, flags.out / "model", model, arguments, **made_for(task), training_flops=flops)
    plot_run(flags.out)
    print(f"{flags.out / 'model'}: {scores(task, network, 'validation', 'test')}")


def _fits(network: nn.Module, model: str, arguments: dict[str, Any]) -> bool:
    """Whether ``arguments`` make a model with tensors like those of ``network``, as a ConvNet for another image size is."""
    try:
        other = create_model(model, **arguments).state_dict()
    except ValueError:  # a patch size that does not divide the images
        return False
    own = network.state_dict()
    return own.keys() == other.keys() and all(own[name].shape == tensor.shape for name, tensor in other.items())
