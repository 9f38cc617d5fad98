"""The one training loop: pre-training, scaler fitting and plain training differ in their objective alone."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from math import cos, isfinite, pi
from pathlib import Path
from typing import Any, TypeAlias

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedDataParallelKwargs
from torch import Tensor, nn
from tqdm import tqdm

from weit.engine.data import Batches, Data, Inputs, tensors_of
from weit.engine.run_folder import Record, RunFolder
from weit.engine.seeds import mix, own_randomness, reseed

Loss: TypeAlias = Callable[[Tensor, Tensor], Tensor]
Objective: TypeAlias = Callable[[nn.Module, Inputs, Tensor, int], Tensor]
"""What a step minimises: (model, inputs, targets, step) → scalar; see ``outputs_of`` for how it calls the model."""

_STEP = 3  # what a seed is drawn for; see data.py for the others


@dataclass(frozen=True)
class TrainConfig:
    """How to train; every field but the last three bears on the result.

    Args:
        steps: optimiser steps.
        batch_size: items in a step, over all processes.
        lr: peak learning rate of AdamW; reached after ``warmup`` and led to zero along a cosine.
        warmup: share of the steps over which the learning rate rises linearly.
        weight_decay: of parameters with two or more dimensions; biases and norms have none.
        betas: of AdamW.
        clip_norm: largest norm of the gradient; ``None`` for no clipping.
        seed: order of the data and randomness inside model and data set.
        accumulate: parts a batch is cut into, to need less memory; the result is the same to rounding.
        mixed_precision: ``"no"``, ``"bf16"`` or ``"fp16"``.
        log_every: steps between records; a record's loss is the mean since the one before.
        evaluate_every: steps between evaluations; 0 for one at the end.
        checkpoint_every: steps between checkpoints, where there is a run folder; 0 for one at the end.
        keep_checkpoints: how many of them stay.

    Raises:
        ValueError: a field out of its range.
    """

    steps: int = 400
    batch_size: int = 64
    lr: float = 1e-3
    warmup: float = 0.1
    weight_decay: float = 0.05
    betas: tuple[float, float] = (0.9, 0.999)
    clip_norm: float | None = 1.0
    seed: int = 0
    accumulate: int = 1
    mixed_precision: str = "no"
    log_every: int = 10
    evaluate_every: int = 0
    checkpoint_every: int = 200
    keep_checkpoints: int = 2

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "accumulate", "log_every", "keep_checkpoints"):
            require(self, name, isinstance(getattr(self, name), int) and getattr(self, name) > 0, "a positive int")
        for name in ("evaluate_every", "checkpoint_every", "seed"):
            require(self, name, isinstance(getattr(self, name), int) and getattr(self, name) >= 0, "an int from 0")
        for name in ("lr", "clip_norm"):
            value = getattr(self, name)
            require(self, name, (name == "clip_norm" and value is None) or 0 < value < float("inf"), "positive")
        require(self, "weight_decay", 0 <= self.weight_decay < float("inf"), "from 0")
        require(self, "warmup", 0 <= self.warmup <= 1, "a share from 0 to 1")
        require(self, "betas", len(self.betas) == 2 and all(0 <= b < 1 for b in self.betas), "two numbers in [0, 1)")
        require(self, "mixed_precision", self.mixed_precision in ("no", "bf16", "fp16"), '"no", "bf16" or "fp16"')
        divides = self.batch_size % self.accumulate == 0
        require(self, "accumulate", divides, f"a divisor of batch_size={self.batch_size}")

    def lr_at(self, step: int) -> float:
        """Learning rate of step 0, 1, …, ``steps - 1``."""
        warm = self.warmup * self.steps
        rise = min(1.0, (step + 1) / (warm + 1))
        return self.lr * rise * 0.5 * (1 + cos(pi * max(0.0, step + 1 - warm) / (self.steps + 1 - warm)))


def train(
    model: nn.Module,
    data: Data,
    config: TrainConfig | None = None,
    *,
    loss: Loss = F.cross_entropy,
    objective: Objective | None = None,
    evaluate: Callable[[nn.Module], Mapping[str, float]] | None = None,
    run_dir: str | Path | None = None,
    resume: bool = False,
    progress: bool = True,
    find_unused_parameters: bool = False,
) -> list[Record]:
    """Train those parameters of ``model`` that require gradients, in place.

    Devices, mixed precision and several processes are accelerate's (start with ``torchrun`` or ``accelerate launch``). The
    model comes back on the device and in the mode it came in, the caller's random state is left alone, and the result
    depends on the arguments only: a resumed run ends with the same bits as one that was never interrupted.

    Args:
        model: inputs → outputs, a tensor or an object with ``.logits``; several inputs come as several arguments.
        data: a data set of pairs, a data loader over one, or a pair of tensors; see ``weit.engine.data.Batches``.
        config: see ``TrainConfig``.
        loss: (outputs, targets) → scalar, a mean over the items.
        objective: in place of ``loss(model(inputs), targets)``; gets the step too.
        evaluate: model → numbers to add to the record; called in evaluation mode, without gradients.
        run_dir: folder for ``config.yaml``, ``metrics.jsonl``, TensorBoard events and checkpoints.
        resume: continue from the last checkpoint in ``run_dir``.
        progress: show a bar on stderr.
        find_unused_parameters: needed on several processes if a step leaves parameters out.

    Returns:
        The records, as in ``metrics.jsonl``: step, loss, lr and what ``evaluate`` gave.

    Raises:
        TypeError, ValueError: bad data or nothing to train, before the first step; a checkpoint that does not fit.
        FloatingPointError: the loss became NaN or infinite.
        OSError: ``run_dir`` cannot be written.
    """
    config = config or TrainConfig()
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise ValueError("model has no parameter that requires gradients")
    if resume and run_dir is None:
        raise ValueError("resume needs run_dir")
    accelerator = _accelerator(config.mixed_precision, find_unused_parameters)
    parts = accelerator.num_processes * config.accumulate
    if config.batch_size % parts:
        raise ValueError(f"batch_size must be a multiple of processes × accumulate = {parts}, got {config.batch_size}")
    device, training = next(model.parameters()).device, model.training
    try:
        with own_randomness(config.seed):
            batches = Batches(
                data,
                config.batch_size,
                seed=config.seed,
                rank=accelerator.process_index,
                world=accelerator.num_processes,
            )
            model.to(accelerator.device)
            if loss is F.cross_entropy or isinstance(loss, nn.CrossEntropyLoss):
                _limit_labels(model, batches, accelerator.device)
            folder = None
            if run_dir is not None:
                settings = {**asdict(config), "items": batches.count}
                folder = RunFolder(run_dir, settings, resume=resume, keep=config.keep_checkpoints)
                accelerator.wait_for_everyone()  # before one of them writes what others may still be looking at
            run = _Run(model, batches, config, objective or _Supervised(loss), evaluate, folder, accelerator)
            return run.finish(progress and accelerator.is_main_process)
    finally:
        model.to(device).train(training)


class _Run:
    """One call of ``train`` under way."""

    def __init__(
        self,
        model: nn.Module,
        batches: Batches,
        config: TrainConfig,
        objective: Objective,
        evaluate: Callable[[nn.Module], Mapping[str, float]] | None,
        folder: RunFolder | None,
        accelerator: Accelerator,
    ) -> None:
        self.model, self.batches, self.config, self.evaluate = model, batches, config, evaluate
        self.accelerator = accelerator
        self.optimizer = _adamw(model, config)
        self.step = 0
        self.history: list[Record] = []
        self.pending: list[Tensor] = []
        self.folder = folder if accelerator.is_main_process else None
        if folder is not None:
            self.history = folder.history
        if folder is not None and folder.checkpoint is not None:
            folder.checkpoint.restore(model, self.optimizer)
            self.step = folder.checkpoint.step
            if accelerator.scaler is not None:
                accelerator.scaler.load_state_dict(folder.checkpoint.state["scaler"])
        # accelerate wraps this module, not the model, so nothing is left on the model that would have to be taken off.
        self.objective, self.stepper = accelerator.prepare(_WithObjective(model, objective), self.optimizer)

    def finish(self, progress: bool) -> list[Record]:
        if self.folder:
            self.folder.open()
        bar = tqdm(
            total=self.config.steps,
            initial=self.step,
            disable=not progress,
            mininterval=0.2 if sys.stderr.isatty() else 10,
            unit="step",
        )
        try:
            self.model.train()
            for inputs, targets in self.batches.stream(self.step, self.config.steps):
                self._update(inputs, targets)
                self.step += 1
                if self._due(self.config.log_every, self.config.evaluate_every, self.config.checkpoint_every):
                    self._record(bar)
                if self._due(self.config.checkpoint_every):
                    self._save()
                bar.update()
        finally:
            bar.close()
            if self.folder:
                self.folder.close()
        return self.history

    def _update(self, inputs: Inputs, targets: Tensor) -> None:
        config, accelerator = self.config, self.accelerator
        reseed(mix(config.seed, _STEP, self.step, accelerator.process_index))
        for group in self.optimizer.param_groups:
            group["lr"] = config.lr_at(self.step)
        several = [tensor.chunk(config.accumulate) for tensor in (*tensors_of(inputs), targets)]
        parts = list(zip(*several, strict=True))
        total = torch.zeros((), device=accelerator.device)
        for i, part in enumerate(parts, 1):
            *x, y = (tensor.to(accelerator.device, non_blocking=True) for tensor in part)
            with accelerator.no_sync(self.objective) if i < len(parts) else nullcontext():
                loss = self.objective(tuple(x), y, self.step) / len(parts)
                accelerator.backward(loss)
            total += loss.detach()
        if config.clip_norm is not None:
            accelerator.clip_grad_norm_(self.objective.parameters(), config.clip_norm)
        self.stepper.step()
        self.stepper.zero_grad()
        self.pending.append(total)

    def _due(self, *intervals: int) -> bool:
        return self.step == self.config.steps or any(every and self.step % every == 0 for every in intervals)

    def _record(self, bar: tqdm[Any]) -> None:
        losses = self.accelerator.reduce(torch.stack(self.pending), "mean").tolist()
        first = self.step - len(losses)
        for i, value in enumerate(losses):
            if not isfinite(value):
                step = f"step {first + i + 1} of {self.config.steps}"
                raise FloatingPointError(f"loss became {value} in {step}; a smaller lr may help")
        self.pending.clear()
        record: Record = {
            "step": self.step,
            "loss": sum(losses) / len(losses),
            "lr": self.config.lr_at(self.step - 1),
        }
        if self.evaluate is not None and self._due(self.config.evaluate_every):
            self.model.eval()
            with torch.no_grad():
                record.update(self.evaluate(self.model))
            self.model.train()
        self.history.append(record)
        if self.folder:
            self.folder.record(record)
        shown = {name: f"{value:.4g}" for name, value in record.items() if name not in ("step", "lr")}
        bar.set_postfix(shown, refresh=False)

    def _save(self) -> None:
        if self.folder:
            scaler = self.accelerator.scaler
            state = {"scaler": None if scaler is None else scaler.state_dict()}
            self.folder.save(self.step, self.model, self.optimizer, state)
        self.accelerator.wait_for_everyone()


class _WithObjective(nn.Module):
    def __init__(self, model: nn.Module, objective: Objective) -> None:
        super().__init__()
        self.model, self.objective = model, objective

    def forward(self, inputs: Inputs, targets: Tensor, step: int) -> Tensor:
        return self.objective(self.model, inputs, targets, step)


class _Supervised:
    def __init__(self, loss: Loss) -> None:
        self.loss = loss

    def __call__(self, model: nn.Module, inputs: Inputs, targets: Tensor, step: int) -> Tensor:
        return self.loss(outputs_of(model, inputs), targets)


def outputs_of(model: Callable[..., Any], inputs: Inputs) -> Tensor:
    """What ``model`` makes of ``inputs``, one or several: the tensor itself, or ``.logits`` of a Hugging Face output."""
    output = model(*tensors_of(inputs))
    if isinstance(output, Tensor):
        return output
    if isinstance(getattr(output, "logits", None), Tensor):
        return output.logits
    raise TypeError(f"model must return a tensor, or an object with logits, got {type(output).__name__}")


def _adamw(model: nn.Module, config: TrainConfig) -> torch.optim.AdamW:
    learning = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in learning if p.dim() >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in learning if p.dim() < 2], "weight_decay": 0.0},
    ]
    fused = all(p.device.type in ("cpu", "cuda") for p in learning)  # on a CPU a third of the time of the plain loop
    return torch.optim.AdamW([g for g in groups if g["params"]], lr=config.lr, betas=config.betas, fused=fused)


def _accelerator(mixed_precision: str, find_unused_parameters: bool) -> Accelerator:
    if AcceleratorState._shared_state.get("_mixed_precision", mixed_precision) != mixed_precision:
        AcceleratorState._reset_state()  # accelerate holds a process to the precision it first asked for
    handler = DistributedDataParallelKwargs(find_unused_parameters=find_unused_parameters)
    return Accelerator(mixed_precision=mixed_precision, kwargs_handlers=[handler])


def _limit_labels(model: nn.Module, batches: Batches, device: torch.device) -> None:
    inputs, targets = batches.batch(0)
    if targets.is_floating_point():
        return
    model.eval()
    with torch.no_grad():
        logits = outputs_of(model, tuple(tensor[:1].to(device) for tensor in tensors_of(inputs)))
    if logits.dim() == 2:
        batches.limit_labels(logits.shape[1])


def require(config: TrainConfig, name: str, holds: bool, expected: str) -> None:
    if not holds:
        raise ValueError(f"{name} must be {expected}, got {getattr(config, name)!r}")
