"""Pre-train a template bank at several sizes at once; the folder gets the bank and the record of the run."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jsonargparse import Namespace

from weit.bank import BankSpec
from weit.bank_files import FILES
from weit.by_name import pretrain_bank
from weit.cli.arguments import Parser, add_fields, flags_of, read_fields
from weit.cli.model import SIZE, DataFlags, SizeFlags, model_arguments
from weit.engine import is_main_process
from weit.files import refuse_foreign
from weit.models.sizes import parse_size, usual_smaller
from weit.predict import predict
from weit.pretrain import PretrainConfig
from weit.report import plot_run

RESUME = "the same command with --resume goes on from the last checkpoint"


@dataclass(frozen=True)
class PretrainFlags:
    """What to pre-train, and where to.

    Args:
        out: folder for the run; the bank goes to its subfolder bank.
        model: see weit compare --help; the usual one of the family if not given.
        smaller: sizes that the pre-training also runs at, each a part of size; if not given, those of 48x6 32x6 64x3 48x4
            32x3 that are (with the interleaved layout, those of its width), none for a model whose sizes have other names.
        teacher: folder of a trained model that weit train wrote, to distil from.
        resume: go on from the last checkpoint in the folder.
        predict: say what memory and time this would take, and do nothing.
        processes: for predict.
        tflops: for predict; 10¹² floating-point operations that a process sustains in a second.
    """

    out: Path
    model: str | None = None
    smaller: list[str] | None = None
    teacher: Path | None = None
    resume: bool = False
    predict: bool = False
    processes: int = 1
    tflops: float = 100.0

    def __post_init__(self) -> None:
        for name in ("processes", "tflops"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}")


@dataclass(frozen=True)
class BankFlags:
    """The bank's shape.

    Args:
        templates: how many for each role.
        template_shape: rows and columns; chosen from the layers' sizes if not given.
        layout: block, or interleaved, with which all sizes have one width.
    """

    templates: int = BankSpec().templates  # type: ignore[assignment]
    template_shape: tuple[int, int] | None = None
    layout: str = BankSpec().layout

    def __post_init__(self) -> None:
        self.spec()

    def spec(self) -> BankSpec:
        return BankSpec(self.templates, self.template_shape, self.layout)


def add_arguments(parser: Parser) -> None:
    for flags in (PretrainFlags, SizeFlags, DataFlags, BankFlags):
        add_fields(parser, flags)
    add_fields(parser, PretrainConfig, skip=["spec"])


def run(parser: Parser, given: Namespace) -> None:
    flags, sizes = read_fields(parser, given, PretrainFlags), read_fields(parser, given, SizeFlags)
    data, shape = read_fields(parser, given, DataFlags), read_fields(parser, given, BankFlags)
    config = read_fields(parser, given, PretrainConfig, spec=shape.spec())
    task = data.task(parser)
    model = flags.model or task.model
    size = sizes.or_else({} if ":" in model else SIZE)
    smaller = [parse_size(each) for each in (usual_smaller(size) if flags.smaller is None else flags.smaller)]
    if flags.smaller is None and shape.layout == "interleaved":
        smaller = [each for each in smaller if each["width"] == size["width"]]
    arguments = [model_arguments(parser, task, model, each) for each in (size, *smaller)]
    if flags.predict:
        if flags.teacher is not None:
            parser.error("predict counts no teacher; leave it out")
        found = predict(model, arguments[0], arguments[1:], config)
        print(found.describe(config, flags.processes, flags.tflops * 1e12))
        return
    refuse_foreign(flags.out / "bank", FILES)
    run: dict[str, Any] = {"run_dir": flags.out, "resume": flags.resume, "flags": flags_of(given)}
    bank = pretrain_bank(task, model, size, smaller, config, teacher=flags.teacher, **run)
    if not is_main_process():
        return
    bank.save_pretrained(flags.out / "bank")
    plot_run(flags.out)
    print(f"{flags.out / 'bank'}: {len(bank.roles)} roles, {bank.num_parameters():,} numbers in templates")
