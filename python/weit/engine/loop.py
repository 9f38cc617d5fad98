"""The one training loop: pre-training, scaler fitting and plain training differ in their objective alone."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from contextlib import ExitStack, nullcontext
from dataclasses import asdict
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from weit.engine.blocks import blocks_of, recomputed
from weit.engine.config import HOW, HOW_WITH_BATCH_NORM, TrainConfig
from weit.engine.data import Batches, Data, Inputs, tensors_of
from weit.engine.modes import has_batch_norm, kept_modes
from weit.engine.objective import Loss, Objective, Supervised, WithObjective
from weit.engine.processes import Processes, own_accelerate
from weit.engine.run_folder import Record, RunFolder, numbers_of
from weit.engine.seeds import SCORES, STEP, mix, own_randomness, reseed
from weit.engine.shards import own_part
from weit.engine.suitable import check_suitable

if TYPE_CHECKING:
    from weit.engine.sharding import ShardedCopy


@own_accelerate()
def train(
    model: nn.Module,
    data: Data,
    config: TrainConfig | Mapping[str, Any] | None = None,
    *,
    loss: Loss = F.cross_entropy,
    objective: Objective | None = None,
    evaluate: Callable[[nn.Module], Mapping[str, float]] | None = None,
    run_dir: str | Path | None = None,
    resume: bool = False,
    progress: bool = True,
    find_unused_parameters: bool = False,
    settings: Mapping[str, Any] | None = None,
    flags: Mapping[str, Any] | None = None,
) -> list[Record]:
    """Train those parameters of ``model`` that require gradients, in place.

    Devices, mixed precision and several processes are accelerate's (start with ``torchrun`` or ``accelerate launch``). The
    whole model is in training mode meanwhile, and comes back on the device and in the modes it came in. The caller's random
    state and ``Accelerator`` are left alone, and the result depends on the arguments only: a resumed run ends with the same
    bits as one that was never interrupted, if all that learns is in the model's state dict, and to rounding it does not
    depend on the number of processes, but for batch norms and what the model draws. After an error in
    a sharded run, but for a loss that is not finite, the model holds no numbers; its checkpoints do.

    Args:
        model: inputs → outputs, a tensor or an object with ``.logits``; several inputs come as several arguments.
        data: a data set of pairs, a data loader over one, or a pair of tensors; see ``weit.engine.data.Batches``.
        config: a ``TrainConfig``, or a mapping with its fields.
        loss: (outputs, targets) → scalar, a mean over the items.
        objective: in place of ``loss(model(inputs), targets)``; gets the step too. Model and targets are checked beforehand
            against its attribute ``loss``, if it has one.
        evaluate: model → numbers to add to the record; called in evaluation mode, without gradients.
        run_dir: folder for ``config.yaml``, ``metrics.jsonl``, TensorBoard events and checkpoints.
        resume: continue from the last checkpoint in ``run_dir``.
        progress: show a bar on stderr.
        find_unused_parameters: needed on several processes if a step leaves parameters out.
        settings: what else the result depends on (JSON), such as the data by name: a resumed run must have the same.
        flags: what ``config.yaml`` holds in place of ``config`` and ``settings``: how a command was called.

    Returns:
        The records, as in ``metrics.jsonl``: step, loss, lr and what ``evaluate`` gave.

    Raises:
        TypeError, ValueError: bad data or nothing to train, before the first step; a checkpoint that does not fit; what
            ``evaluate`` gave, after the checkpoint of the step.
        FloatingPointError: the loss became NaN or infinite, or parameters did in the last step.
        OSError: ``run_dir`` cannot be written.
    """
    config = TrainConfig.of(config)
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be an nn.Module, got {type(model).__name__}")
    if not callable(loss):
        raise TypeError(f"loss must be a function of outputs and targets, got {type(loss).__name__}")
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise ValueError("model has no parameter that requires gradients")
    if resume and run_dir is None:
        raise ValueError("resume needs run_dir")
    processes = Processes(config.mixed_precision, find_unused_parameters)
    config.items_at_a_time(processes.count)  # refuses a batch that cannot be cut evenly
    if config.activation_checkpointing and not blocks_of(model):
        raise ValueError("activation_checkpointing needs a model with blocks in a ModuleList or Sequential, found none")
    device = next(model.parameters()).device
    objective = objective or Supervised(loss)
    compared = getattr(objective, "loss", None)

    def prepare() -> tuple[Batches, RunFolder | None]:
        here = {"rank": processes.rank, "world": processes.count}
        batches = Batches(data, config.batch_size, seed=config.seed, workers=config.workers, **here)
        model.to(processes.accelerator.device)
        if compared is not None:
            check_suitable(model, batches, compared, processes.accelerator.autocast())
        if run_dir is None:
            return batches, None
        known = {**(settings or {}), **asdict(config), "items": batches.count}
        how = HOW_WITH_BATCH_NORM if has_batch_norm(model) else HOW
        return batches, RunFolder(run_dir, known, how=how, flags=flags, resume=resume, keep=config.keep_checkpoints)

    try:
        with kept_modes(model), own_randomness(config.seed), torch.enable_grad():
            # Together, before one of them writes what others may still be looking at.
            batches, folder = processes.together(prepare)
            run = _Run(model, batches, config, objective, evaluate, folder, processes)
            return run.finish(progress and processes.is_main)
    finally:
        model.to(device)


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
        processes: Processes,
    ) -> None:
        self.model, self.batches, self.config, self.evaluate = model, batches, config, evaluate
        self.processes, self.accelerator = processes, processes.accelerator
        self.folder = folder
        self.sharded: ShardedCopy | None = None
        if config.sharding == "fsdp" and processes.count > 1:
            from weit.engine.sharding import ShardedCopy  # torch's part of it takes a second to import

            self.sharded = ShardedCopy(model, objective, processes)
        self.trained = model if self.sharded is None else self.sharded.model
        self.learning = [parameter for parameter in self.trained.parameters() if parameter.requires_grad]
        self.optimizer = _adamw(self.learning, config)
        self.step = 0
        self.history: list[Record] = []
        self.pending: list[Tensor] = []
        self.unrecorded: Record | None = None
        if folder is not None:
            self.history = folder.history
        if folder is not None and folder.checkpoint is not None:
            folder.checkpoint.restore(self.trained, self.optimizer)
            self.step = folder.checkpoint.step
            if not self.history or self.history[-1]["step"] < self.step:
                self.unrecorded = folder.checkpoint.state.get("record")
            if self.accelerator.scaler is not None:
                self.accelerator.scaler.load_state_dict(folder.checkpoint.state["scaler"])
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.grad = None  # what the caller left there is no part of the first step
        self.stepper = self.accelerator.prepare(self.optimizer)
        if self.sharded is not None:
            self.objective: nn.Module = self.sharded.module
        else:
            # accelerate wraps this module, not the model, so nothing is left on the model that would have to be taken off.
            self.objective = self.accelerator.prepare(WithObjective(model, objective))

    def finish(self, progress: bool) -> list[Record]:
        bar = tqdm(
            total=self.config.steps,
            initial=self.step,
            disable=not progress,
            mininterval=0.2 if sys.stderr.isatty() else 10,
            unit="step",
        )
        with ExitStack() as stack:
            stack.callback(bar.close)
            if self.folder is not None:
                main = self.processes.is_main
                self.processes.together(self.folder.open if main else lambda: None)
                stack.callback(self.folder.close if main else lambda: None)
            if self.config.activation_checkpointing:
                stack.enter_context(recomputed(blocks_of(self.trained)))
            self.trained.train()
            if self.unrecorded is not None:  # the run ended between the checkpoint and its record
                self._record(self.unrecorded, bar)
            for inputs, targets in self.batches.stream(self.step, self.config.steps):
                self._update(inputs, targets)
                self.step += 1
                if self._due(self.config.log_every, self.config.evaluate_every, self.config.checkpoint_every):
                    record = self._mean_loss()
                    if self.step == self.config.steps:
                        self._check_parameters()
                    # Before the record, for which ``evaluate`` is called: an error in there costs no steps.
                    if self.folder is not None and self._due(self.config.checkpoint_every):
                        self._save(self.folder, record)
                    self._record(record, bar)
                bar.update()
        self._share_buffers()
        if self.sharded is not None:
            self.sharded.fill()
        return self.history

    def _update(self, inputs: Inputs, targets: Tensor) -> None:
        config, accelerator = self.config, self.accelerator
        reseed(mix(config.seed, STEP, self.step, self.processes.rank))
        if self.sharded is not None:
            self._share_buffers()  # as DDP does by itself
        for group in self.optimizer.param_groups:
            group["lr"] = config.lr_at(self.step)
        several = [tensor.chunk(config.accumulate) for tensor in (*tensors_of(inputs), targets)]
        parts = list(zip(*several, strict=True))
        total = torch.zeros((), device=accelerator.device)
        for i, part in enumerate(parts, 1):
            *x, y = (tensor.to(accelerator.device, non_blocking=True) for tensor in part)
            with accelerator.no_sync(self.objective) if i < len(parts) else nullcontext():
                with accelerator.autocast():
                    given = x[0] if isinstance(inputs, Tensor) else tuple(x)
                    loss = self.objective(given, y, self.step) / len(parts)
                accelerator.backward(loss)
            total += loss.detach()
        if config.clip_norm is not None:
            # Frozen parameters may hold gradients of the caller's, which nothing here takes away.
            accelerator.clip_grad_norm_(self.learning, config.clip_norm)
        self.stepper.step()
        self.stepper.zero_grad()
        self.pending.append(total)

    def _due(self, *intervals: int) -> bool:
        return self.step == self.config.steps or any(every and self.step % every == 0 for every in intervals)

    def _mean_loss(self) -> Record:
        losses = self.accelerator.reduce(torch.stack(self.pending), "mean").tolist()
        first = self.step - len(losses)
        for i, value in enumerate(losses):
            if not isfinite(value):
                raise self._diverged(f"loss became {value}", first + i + 1)
        self.pending.clear()
        return {"step": self.step, "loss": sum(losses) / len(losses), "lr": self.config.lr_at(self.step - 1)}

    def _check_parameters(self) -> None:
        """After the last update, whose result no loss shows."""
        finite = torch.stack([own_part(parameter).isfinite().all() for parameter in self.learning])
        if self.accelerator.reduce((~finite).any().float(), "sum"):
            raise self._diverged("parameters became NaN or infinite", self.step)

    def _diverged(self, what: str, step: int) -> FloatingPointError:
        if self.sharded is not None:
            self.sharded.fill()
        return FloatingPointError(f"{what} in step {step} of {self.config.steps}; a smaller lr may help")

    def _record(self, record: Record, bar: tqdm[Any]) -> None:
        if self.evaluate is not None and self._due(self.config.evaluate_every):
            record = {**record, **self._scores(self.evaluate)}
        self.history.append(record)
        if self.folder is not None and self.processes.is_main:
            self.folder.record(record)
        shown = {name: f"{value:.4g}" for name, value in record.items() if name not in ("step", "lr")}
        bar.set_postfix(shown, refresh=False)

    def _scores(self, evaluate: Callable[[nn.Module], Mapping[str, float]]) -> dict[str, float]:
        self._share_buffers()
        reseed(mix(self.config.seed, SCORES, self.step))
        with nullcontext() if self.sharded is None else self.sharded.filled(), torch.no_grad():
            self.model.eval()
            found = numbers_of(evaluate(self.model))
            self.model.train()
        return self.processes.of_first(found)

    def _share_buffers(self) -> None:
        """A batch norm's statistics are each process's own after a step; a checkpoint keeps the first one's."""
        self.processes.take_first(self.trained.buffers())

    def _save(self, folder: RunFolder, record: Record) -> None:
        scaler = self.accelerator.scaler
        state = {"scaler": None if scaler is None else scaler.state_dict(), "record": record}
        folder.save(self.step, self.trained, self.optimizer, state, self.processes)


def _adamw(learning: list[nn.Parameter], config: TrainConfig) -> torch.optim.AdamW:
    groups = [
        {"params": [p for p in learning if p.dim() >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in learning if p.dim() < 2], "weight_decay": 0.0},
    ]
    fused = all(p.device.type in ("cpu", "cuda") for p in learning)  # on a CPU a third of the time of the plain loop
    return torch.optim.AdamW([g for g in groups if g["params"]], lr=config.lr, betas=config.betas, fused=fused)
