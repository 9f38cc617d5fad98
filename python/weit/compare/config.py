"""What is compared, and how."""

from __future__ import annotations

from dataclasses import dataclass, field
from math import isfinite
from pathlib import Path

from weit.compare.pool import default_workers
from weit.models.sizes import parse_size
from weit.rivals import RIVALS

WEIT = "weit"
LONGER = "scratch_longer"
INITIALIZERS = ("scratch", LONGER, *(name for name in RIVALS if name != "scratch"), WEIT)
SOURCES = {  # which of the given models a rival takes from
    "weight_selection": "source",
    "tleg": "source",
    "distillation": "source",
    "ligo": "small",
    "bert2bert": "small",
}
LEARNED = ("ligo", "tleg", "distillation")


@dataclass(frozen=True)
class Grid:
    """Targets, each trained from several starts, at several learning rates and with several seeds, on one schedule.

    Args:
        out: folder for results, tables, plots and report; what it holds already is not computed again.
        data: digits or fashion-mnist.
        root: folder of the data set, if it is not in the usual place.
        model: vit, or timm:NAME or hf:NAME where installed.
        targets: sizes, as 64x6 (width x depth) or name=64,other=6.
        lrs: peak learning rates; each target and initialiser takes the one that is best on validation data.
        seeds: how many, from 0.
        steps: training steps of every cell.
        batch_size: images in a step.
        evaluate_every: steps between the points of a learning curve.
        curve_images: test images that a point of a curve is measured on; the last point takes all.
        fit_steps: steps of scaler fitting that a start from the bank takes, and of learning that ligo, tleg and
            distillation take.
        fit_lr: learning rate of scaler fitting.
        workers: processes, of one thread each; 0 for the number of cores.

    Raises:
        ValueError: a field out of range.
    """

    out: Path
    data: str = "digits"
    root: Path | None = None
    model: str = "vit"
    targets: list[str] = field(default_factory=lambda: ["64x3", "64x9", "32x6", "96x6", "32x3", "96x8"])
    lrs: list[float] = field(default_factory=lambda: [2e-3, 4e-3, 8e-3])
    seeds: int = 3
    steps: int = 200
    batch_size: int = 32
    evaluate_every: int = 20
    curve_images: int = 2000
    fit_steps: int = 100
    fit_lr: float = 1e-2
    workers: int = 0

    def __post_init__(self) -> None:
        for name in ("seeds", "steps", "batch_size", "evaluate_every", "curve_images"):
            require(getattr(self, name) > 0, name, "at least 1", getattr(self, name))
        for name in ("fit_steps", "workers"):
            require(getattr(self, name) >= 0, name, "0 or more", getattr(self, name))
        for name in ("targets", "lrs"):
            require_distinct(name, getattr(self, name))
        require(all(0 < lr and isfinite(lr) for lr in self.lrs), "lrs", "positive", self.lrs)
        require(0 < self.fit_lr and isfinite(self.fit_lr), "fit_lr", "positive", self.fit_lr)
        for target in self.targets:
            parse_size(target)

    @property
    def processes(self) -> int:
        """How many workers to start."""
        return self.workers or default_workers()


@dataclass(frozen=True)
class CompareConfig(Grid):
    """A grid with what its starts are taken from.

    Args:
        bank: folder of a pre-trained bank, for weit.
        source: folder of a trained dense model, for weight_selection, for which it should be at least as large as every
            target, tleg, which serves targets of its width, and distillation.
        small: folder of a trained dense model no larger than the targets, for ligo and bert2bert.
        initializers: of scratch, weight_selection, ligo, bert2bert, mimetic, tleg, distillation, weit, and
            scratch_longer, which is scratch with as much total work as weit had, fitting and its share of the
            pre-training included. One that cannot serve a target is left out there.

    Raises:
        ValueError: a field out of range, or an initialiser without what it needs.
    """

    bank: Path | None = None
    source: Path | None = None
    small: Path | None = None
    initializers: list[str] = field(default_factory=lambda: ["scratch", LONGER, "weight_selection", WEIT])

    def __post_init__(self) -> None:
        super().__post_init__()
        chosen = self.initializers
        require_distinct("initializers", chosen)
        require(set(chosen) <= set(INITIALIZERS), "initializers", f"of {', '.join(INITIALIZERS)}", chosen)
        require("scratch" in chosen, "initializers", "a list with scratch, which the others are held against", chosen)
        require(LONGER not in chosen or WEIT in chosen, "initializers", f"with {WEIT} where {LONGER} is", chosen)
        require(WEIT not in chosen or self.bank is not None, "bank", f"a folder, for {WEIT}", self.bank)
        for name, given in SOURCES.items():
            require(name not in chosen or getattr(self, given) is not None, given, f"a folder, for {name}", None)


def require_distinct(name: str, values: list[str] | list[float]) -> None:
    """Raise ``ValueError`` unless there are values, each once."""
    require(0 < len(values) == len(set(values)), name, "a list without repetitions, not empty", values)


def require(holds: bool, name: str, expected: str, got: object) -> None:
    """Raise ``ValueError`` unless ``holds``."""
    if not holds:
        raise ValueError(f"{name} must be {expected}, got {got}")
