"""What is compared, and how."""

from __future__ import annotations

from dataclasses import dataclass, field
from math import isfinite
from pathlib import Path
from typing import Any

from weit.engine.config import PRECISIONS, require
from weit.engine.processes import usable_cores
from weit.fitting import FIT_RATES
from weit.models.sizes import parse_size, usual_smaller
from weit.rivals import RIVALS
from weit.tasks import FAMILIES, Task, load_task

SCRATCH, WEIT = "scratch", "weit"
LONGER = "scratch_longer"
SOURCES = {  # which model each rival takes from
    "weight_selection": "source",
    "tleg": "source",
    "distillation": "source",
    "ligo": "small",
    "bert2bert": "small",
}
LEARNED = ("ligo", "tleg", "distillation")
RIVAL_NAMES = (LONGER, *(name for name in RIVALS if name != SCRATCH))
ALL = "all"
TEACHERS = ("none", "source", "small")


@dataclass(frozen=True)
class CompareConfig:
    """Targets, each trained from several starts, at several learning rates and with several seeds, on one schedule.

    What the starts are taken from, a bank and trained dense models, is given as folders or else made first.

    Args:
        out: folder for results, tables, plots and report; what it holds already is not computed again.
        family: classification, generation or control.
        data: of that family; its usual data if not given.
        root: folder or file of the data, if it is not in the usual place.
        image_size, augment: of the user's own images; see weit train --help.
        model: of the targets; the usual one of the family if not given. vit, resnet, convnext, timm:NAME or hf:TYPE for
            images, dit for generation, mlp or transformer for control.
        targets: sizes, as 64x6 (width x depth) or name=64,other=2-2.
        rivals: beside scratch and WeiT: of weight_selection, ligo, bert2bert, mimetic, tleg, distillation, and
            scratch_longer, which is scratch with as much total work as WeiT had, fitting and its share of the
            pre-training included; or all. One that cannot serve a target is left out there.
        lrs: peak learning rates; each target and start takes the one that is best on validation data.
        seeds: how many, from 0.
        steps: training steps of every cell.
        batch_size: items in a step.
        evaluate_every: steps between the points of a learning curve; more in scratch_longer's, which has no more points.
        fit_steps: steps of scaler fitting that a start from the bank takes, and of learning that ligo, tleg and
            distillation take.
        fit_lrs: learning rates of scaler fitting; each target takes the best pair of one and one of lrs, on validation data.
        bank: folder of a pre-trained bank; made if not given.
        source: folder of a trained dense model that weight_selection, tleg and distillation take from; made if needed.
        small: folder of a trained dense model that ligo and bert2bert take from; made if needed.
        size: of the model that a bank is pre-trained with.
        smaller: sizes that the pre-training also runs at; see weit pretrain --help for those it has if not given.
        templates: of each role in the bank.
        template_shape: rows and columns; chosen from the layers' sizes if not given.
        teacher: what the bank's pre-training distils from: none, or source or small, whose training then counts too.
        source_size: of the source; weight_selection serves targets that are no larger, tleg those of its width.
        small_size: of the small model; ligo and bert2bert serve targets that are no smaller.
        pretrain_steps: of bank, source and small model alike.
        pretrain_lr: learning rate of the bank's pre-training.
        full_share: share of its steps that run at full size.
        source_lr: learning rate of source and small model, and of what tleg and distillation learn before step 0.
        ligo_lrs: learning rates of ligo's operators, chosen from like fit_lrs.
        mixed_precision: of all training: "no", "bf16" or "fp16"; scores are measured without.
        workers: processes, of one thread each; 0 for the number of cores. They share the GPU where there is one.

    Raises:
        ValueError: a field out of range.
    """

    out: Path
    family: str = "classification"
    data: str | None = None
    root: Path | None = None
    image_size: int | None = None
    augment: str | None = None
    model: str | None = None
    targets: list[str] = field(default_factory=lambda: ["64x3", "64x9", "32x6", "96x6", "32x3", "96x8"])
    rivals: list[str] = field(default_factory=lambda: [LONGER, "weight_selection"])
    lrs: list[float] = field(default_factory=lambda: [2e-3, 4e-3, 8e-3])
    seeds: int = 3
    steps: int = 200
    batch_size: int = 32
    evaluate_every: int = 20
    fit_steps: int = 100
    fit_lrs: list[float] = field(default_factory=lambda: list(FIT_RATES))
    bank: Path | None = None
    source: Path | None = None
    small: Path | None = None
    size: str = "64x6"
    smaller: list[str] | None = None
    templates: int = 8
    template_shape: tuple[int, int] | None = None
    teacher: str = "none"
    source_size: str = "96x9"
    small_size: str = "32x3"
    pretrain_steps: int = 600
    pretrain_lr: float = 4e-3
    full_share: float = 0.25
    source_lr: float = 4e-3
    ligo_lrs: list[float] = field(default_factory=lambda: [2.5e-4, 1e-3, 5e-3])
    mixed_precision: str = "no"
    workers: int = 0

    def __post_init__(self) -> None:
        require(self, "family", self.family in FAMILIES, f"one of {', '.join(FAMILIES)}")
        for name in ("seeds", "steps", "batch_size", "evaluate_every", "pretrain_steps", "templates"):
            require(self, name, getattr(self, name) > 0, "at least 1")
        for name in ("fit_steps", "workers"):
            require(self, name, getattr(self, name) >= 0, "0 or more")
        rates = ("lrs", "fit_lrs", "ligo_lrs")
        for name in ("targets", *rates):
            require(self, name, bool(getattr(self, name)), "a list that is not empty")
        known = {name: [f"{lr:g}" for lr in getattr(self, name)] for name in rates}  # as jobs are called
        known |= {"targets": [str(sorted(parse_size(size).items())) for size in self.targets], "rivals": self.rivals}
        for name, values in known.items():
            require(self, name, len(values) == len(set(values)), "a list without repetitions")
        for name in rates:
            require(self, name, all(0 < lr and isfinite(lr) for lr in getattr(self, name)), "positive")
        for name in ("pretrain_lr", "source_lr"):
            require(self, name, 0 < getattr(self, name) and isfinite(getattr(self, name)), "positive")
        require(self, "full_share", 0 <= self.full_share <= 1, "a share from 0 to 1")
        require(self, "mixed_precision", self.mixed_precision in PRECISIONS, f"one of {', '.join(PRECISIONS)}")
        require(self, "teacher", self.teacher in TEACHERS, f"one of {', '.join(TEACHERS)}")
        if self.rivals == [ALL]:
            object.__setattr__(self, "rivals", list(RIVAL_NAMES))
        require(self, "rivals", set(self.rivals) <= set(RIVAL_NAMES), f"all, or of {', '.join(RIVAL_NAMES)}")
        require(self, "teacher", self.teacher == "none" or self.bank is None, "none where a bank is given")
        if self.smaller is None:
            object.__setattr__(self, "smaller", usual_smaller(parse_size(self.size)))
        for size in (*self.targets, self.size, *(self.smaller or []), self.source_size, self.small_size):
            parse_size(size)

    def task(self) -> Task:
        """What is compared on; raises as ``load_task``."""
        return load_task(**self.task_arguments)

    @property
    def task_arguments(self) -> dict[str, Any]:
        """Of ``load_task``, as JSON."""
        root = None if self.root is None else str(self.root)
        own = {"image_size": self.image_size, "augment": self.augment}
        return {"data": self.data, "root": root, "family": self.family, **own}

    def own_rates(self, name: str) -> list[float] | list[None]:
        """The rates to choose from at which a start learns before step 0, if it does."""
        if name not in (WEIT, *LEARNED):
            return [None]
        rates = {WEIT: self.fit_lrs, "ligo": self.ligo_lrs}.get(name, [self.source_lr])
        return rates if self.fit_steps else rates[:1]

    @property
    def precision(self) -> dict[str, str]:
        """What all training has beside its own settings: nothing in full precision, so that results from before the
        choice was there are used again.
        """
        return {} if self.mixed_precision == "no" else {"mixed_precision": self.mixed_precision}

    @property
    def starts(self) -> list[str]:
        """All that a target is trained from: scratch, the rivals, WeiT."""
        return [SCRATCH, *self.rivals, WEIT]

    @property
    def processes(self) -> int:
        """How many workers to start."""
        return self.workers or usable_cores()
