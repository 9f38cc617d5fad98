"""Pre-training of templates and scalers together, at many sizes at once."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from math import inf
from pathlib import Path
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from weit.bank import BankSpec, TemplateBank, check_json
from weit.convert import bank_of, extract_bank, kronify
from weit.engine.config import TrainConfig, is_number, require
from weit.engine.data import Data, Inputs
from weit.engine.loop import train
from weit.engine.objective import Loss, Supervised
from weit.engine.seeds import own_randomness
from weit.engine.soft_targets import SoftTargets
from weit.masks import Elastic, draw_size
from weit.matching import applicable
from weit.nn.factors import KronFactors
from weit.rules import Rules
from weit.scalers import lay_out

STARTS = ("random", "extract")


@dataclass(frozen=True)
class PretrainConfig(TrainConfig):
    """How to pre-train: ``TrainConfig``, and what follows.

    Args:
        spec: how many templates of which shape; a mapping with the fields of a ``BankSpec`` will do.
        start: ``"random"``, or ``"extract"``: templates and scalers nearest to the weights of the given, trained model.
        full_share: share of the steps that run at full size; the others are spread evenly over the smaller sizes.
        alpha: weight of distillation beside the task's loss, where there is a teacher.
        temperature: of distillation.

    Raises:
        TypeError, ValueError: a field of the wrong type or out of its range.
    """

    lr: float = 4e-3
    spec: BankSpec = field(default_factory=BankSpec)
    start: str = "random"
    full_share: float = 0.25
    alpha: float = 1.0
    temperature: float = 2.0

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "spec", BankSpec.of(self.spec))
        require(self, "start", self.start in STARTS, f"one of {', '.join(STARTS)}")
        require(self, "full_share", is_number(self.full_share) and 0 <= self.full_share <= 1, "a share from 0 to 1")
        require(self, "alpha", is_number(self.alpha) and 0 <= self.alpha < inf, "from 0")
        require(self, "temperature", is_number(self.temperature) and 0 < self.temperature < inf, "positive")


def pretrain(
    model: nn.Module,
    data: Data,
    config: PretrainConfig | Mapping[str, Any] | None = None,
    *,
    bank: TemplateBank | None = None,
    smaller: Sequence[nn.Module] = (),
    teacher: nn.Module | None = None,
    distance: Loss | None = None,
    rules: Rules | None = None,
    loss: Loss = F.cross_entropy,
    evaluate: Callable[[nn.Module], Mapping[str, float]] | None = None,
    model_config: Mapping[str, Any] | None = None,
    run_dir: str | Path | None = None,
    resume: bool = False,
    progress: bool = True,
    settings: Mapping[str, Any] | None = None,
    flags: Mapping[str, Any] | None = None,
) -> TemplateBank:
    """Train a template bank: every weight that the rules name is templates ⊗ scalers from the first step to the last.

    Each step draws a size, the full one or one of ``smaller``, and trains the prefix of the parameters that makes it up
    (see ``weit.masks.Elastic``), so that the templates come to serve many sizes.

    Args:
        model: the largest size; kronified in place unless it is already, and trained.
        data, loss, run_dir, resume, progress, settings, flags: as for ``weit.engine.train``.
        config: a ``PretrainConfig``, or a mapping with its fields. ``spec`` is of new templates.
        bank: templates to go on from, in place of new ones after ``config.spec``; of a kronified ``model`` its own, which
            need not be given where ``kronify`` made all its Kron layers. All else of a dense ``model`` starts from the
            bank's source, see ``weit.scalers.lay_out``; set that to ``None`` for a start from ``model``'s own numbers and
            fresh scalers.
        smaller: models of the same family with attention heads of the same size, none larger than ``model`` in anything,
            on its device and of its dtype. Their shapes count, and their buffers (running statistics), which start each
            size's own; parameters are ``model``'s.
        teacher: a trained model with the same outputs, to distil from.
        distance: from the teacher's answers, where outputs are not logits: (outputs, answers) → scalar.
        rules: as for ``kronify``; each must match some layer of ``model``, but not of ``smaller`` ones.
        evaluate: full-size model → numbers for the record.
        model_config: how to build ``model`` again, JSON-like; kept as ``bank.source.config``.

    Returns:
        The bank, with ``source`` filled: all else that was learned, for ``initialize`` to start from.

    Raises:
        TypeError, ValueError: bad data, rules or sizes; see also ``weit.engine.train``. After an error before the first
            loss ``model`` is as it was; after later ones it has learned: ``resume`` goes on from a checkpoint; where there
            is none build it anew.
        FloatingPointError: the loss or, in the last step, parameters became NaN or infinite.
        OSError: ``run_dir`` cannot be written.

    Source: WeiT (arXiv 2604.14769), constraint-based pre-training with structured masks; distillation as Hinton et al.
    2015, "Distilling the knowledge in a neural network".
    """
    config = PretrainConfig.of(config)
    smaller = _check_modules(model, smaller, teacher, bank)
    model_config = check_json("model_config", model_config)
    children = [(parent, dict(parent._modules)) for parent in model.modules()]
    base = (
        Supervised(loss) if teacher is None else SoftTargets(teacher, loss, config.alpha, config.temperature, distance)
    )
    objective = _AtDrawnSize(config, base)
    goes_on = bank is not None and bank.source is not None and not _has_kron(model)
    numbers = copy.deepcopy(model.state_dict()) if goes_on else {}  # the source is written over them
    try:
        with own_randomness(config.seed):
            bank = _kronified(model, bank, config, rules)
            elastic = Elastic(model, [_share(bank, small, rules) for small in smaller])
        train(
            elastic,
            data,
            config,
            loss=loss,
            objective=objective,
            evaluate=None if evaluate is None else partial(_evaluate_inside, evaluate),
            run_dir=run_dir,
            resume=resume,
            progress=progress,
            find_unused_parameters=True,  # a smaller size leaves out the last layers
            settings={**_known(elastic, rules, teacher), **(settings or {})},
            flags=flags,
        )
    except BaseException:
        if not objective.begun:  # what does not fit shows when it is used for the first time
            for parent, before in children:
                parent._modules.update(before)
            with suppress(RuntimeError):  # after most errors in a sharded run the model holds nothing to restore
                model.load_state_dict(numbers, strict=False)
        raise
    bank.take_source(model, model_config)
    return bank


def _known(elastic: Elastic, rules: Rules | None, teacher: nn.Module | None) -> dict[str, Any]:
    """What a resumed run must have the same, as far as it can be told: the sizes in numbers that learn, among others."""
    return {
        "smaller": [sum(parameter.numel() for parameter in small.parameters()) for small in elastic.skeletons],
        "rules": None if rules is None else list(rules.items()),  # their order counts
        "teacher": teacher is not None,
    }


def _evaluate_inside(evaluate: Callable[[nn.Module], Mapping[str, float]], elastic: Any) -> Mapping[str, float]:
    """What ``evaluate`` says of the big model, which training sees as an elastic one."""
    return evaluate(elastic.model)


def _check_modules(model: object, smaller: Any, teacher: object, bank: object) -> list[nn.Module]:
    for name, given in (("model", model), ("teacher", teacher)):
        if not isinstance(given, nn.Module) and (name == "model" or given is not None):
            raise TypeError(f"{name} must be an nn.Module, got {type(given).__name__}")
    models: list[Any] = list(smaller) if isinstance(smaller, Iterable) else [None]
    if not all(isinstance(small, nn.Module) for small in models):
        raise TypeError(f"smaller must be a sequence of nn.Modules, got {type(smaller).__name__}")
    if bank is not None and not isinstance(bank, TemplateBank):
        raise TypeError(f"bank must be a TemplateBank, got {type(bank).__name__}")
    return models


class _AtDrawnSize:
    """An objective of an elastic model at the size of the step; ``begun``: whether it has had a value yet."""

    def __init__(self, config: PretrainConfig, objective: Supervised | SoftTargets) -> None:
        self.config, self.objective, self.begun = config, objective, False
        self.loss = objective.loss  # what ``train`` checks the data against

    def __call__(self, elastic: nn.Module, inputs: Inputs, targets: Tensor, step: int) -> Tensor:
        size = draw_size(self.config.seed, step, elastic.sizes, self.config.full_share)  # type: ignore[arg-type]
        value = self.objective(partial(elastic, size=size), inputs, targets, step)
        self.begun = True
        return value


def _kronified(
    model: nn.Module, bank: TemplateBank | None, config: PretrainConfig, rules: Rules | None
) -> TemplateBank:
    if _has_kron(model):
        if config.start == "extract":
            raise ValueError('start="extract" needs a dense model, but model is kronified already')
        if bank is None:
            try:
                return bank_of(model)
            except ValueError as error:
                raise ValueError(f"bank must be given for this kronified model: {error}") from error
        bank.check_shared(model)
        return bank
    if config.start == "extract":
        if bank is not None:
            raise ValueError('bank must be None with start="extract", which makes its own')
        bank = extract_bank(model, config.spec, rules=rules).bank
    if bank is None:
        return kronify(model, config.spec, rules=rules)
    kronify(model, _bare(bank), rules=rules)
    if bank.source is not None:
        try:
            lay_out(model, bank.source, seed=config.seed)
        except ValueError as error:
            raise ValueError(f"{error}; to go on from the templates alone set bank.source to None") from error
    return bank


def _share(bank: TemplateBank, small: nn.Module, rules: Rules | None) -> nn.Module:
    if _has_kron(small):
        return small
    small = copy.deepcopy(small)
    # Rules are about the model; a shallower one need not have what each of them names.
    kronify(small, _bare(bank), rules=None if rules is None else applicable(rules, small))
    return small


def _bare(bank: TemplateBank) -> TemplateBank:
    """The same templates without a source, which would be laid out."""
    return TemplateBank({role: bank[role] for role in bank}, bank.layout)


def _has_kron(model: nn.Module) -> bool:
    return any(isinstance(module, KronFactors) for module in model.modules())
