"""Runs that tests start on one process and on several: ``torchrun … -m tests.weit.engine.scenarios FOLDER NAME…``."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.utils.data import Dataset

import weit
from tests.weit.toys import SPEC, images, vit
from weit.engine import TrainConfig, checkpoint, is_main_process, train
from weit.engine.objective import Loss, Objective, Supervised
from weit.engine.processes import Processes
from weit.engine.sharding import ShardedCopy
from weit.masks import Elastic

DENSE = TrainConfig(steps=12, batch_size=16, lr=3e-3, log_every=3, checkpoint_every=4, evaluate_every=6)
BANK = weit.PretrainConfig(steps=12, batch_size=16, spec=SPEC, log_every=3, checkpoint_every=4, evaluate_every=6)
TINY = ["--size", "32x2", "--steps", "4", "--batch-size", "8", "--checkpoint-every", "2", "--log-every", "2"]

Result = tuple[nn.Module, list[dict[str, float]]]


def dense(
    out: Path | None = None,
    *,
    resume: bool = False,
    dtype: torch.dtype = torch.float64,
    loss: Loss = F.cross_entropy,
    **changes: Any,
) -> Result:
    """Plain training; in float64, where the rounding that Adam blows up stays small."""
    torch.manual_seed(0)
    model = vit().to(dtype)
    inputs, targets = images()
    run = {"loss": loss, "evaluate": _evaluate, "run_dir": out, "resume": resume, "progress": False}
    return model, train(model, (inputs.to(dtype), targets), replace(DENSE, **changes), **run)


def bank(out: Path | None = None, *, resume: bool = False, **changes: Any) -> Result:
    """Pre-training at three sizes; the module holds the big model and the bank."""
    torch.manual_seed(0)
    model, smaller = vit().double(), [vit(16, 2).double(), vit(32, 1).double()]
    inputs, targets = images()
    scores: list[dict[str, float]] = []

    def evaluate(network: nn.Module) -> dict[str, float]:
        scores.append(_evaluate(network))
        return scores[-1]

    run = {"evaluate": evaluate, "run_dir": out, "resume": resume, "progress": False}
    made = weit.pretrain(model, (inputs.double(), targets), replace(BANK, **changes), smaller=smaller, **run)
    assert model.blocks[0].attn.q.templates is model.blocks[2].attn.q.templates is made["q"]
    return nn.ModuleDict({"model": model, "bank": made}), scores


class Halves(Dataset[Any]):
    """Items of two inputs and a target: the upper and the lower half of an image."""

    def __init__(self) -> None:
        self.images, self.labels = images()

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[tuple[Tensor, Tensor], Tensor]:
        upper, lower = self.images[index].double().split(2, dim=1)
        return (upper, lower), self.labels[index]


class OfHalves(nn.Module):
    """A model of two inputs, which it puts together."""

    def __init__(self) -> None:
        super().__init__()
        self.whole = vit().double()

    def forward(self, upper: Tensor, lower: Tensor) -> Tensor:
        return self.whole(torch.cat([upper, lower], 2))


def halves(**changes: Any) -> Result:
    torch.manual_seed(0)
    model = OfHalves()
    return model.whole, train(model, Halves(), replace(DENSE, **changes), progress=False)


def fitted(**changes: Any) -> Result:
    """Scalers at the better of two rates; at the first one the loss is infinite."""
    torch.manual_seed(0)
    source, model = vit().double(), vit(16, 2).double()
    inputs, targets = images(200)
    made = weit.kronify(source, SPEC)
    weit.kronify(model, made)
    settings = {"steps": 6, "batch_size": 16, "lr": [1e300, 1e-2], **changes}
    return model, weit.fit_scalers(model, made, (inputs.double(), targets), **settings)


def ranked() -> Result:
    """Scores that are the process's number."""
    model = vit().double()
    inputs, targets = images()
    rank = {"rank": float(os.environ.get("RANK", 0))}
    history = train(model, (inputs.double(), targets), DENSE, evaluate=lambda _: rank, progress=False)
    assert history[-1]["rank"] == 0, "scores are the first process's on all of them"
    return model, history


class Normed(nn.Module):
    """A model whose buffers learn: a batch norm's, and one that its answers depend on in training too."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.norm, self.head = nn.Linear(16, 8), nn.BatchNorm1d(8), nn.Linear(8, 4)
        self.register_buffer("mean", torch.zeros(16))

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(1)
        with torch.no_grad():
            self.mean.lerp_(x.mean(0), 0.1)
        return self.head(F.relu(self.norm(self.inner(x - self.mean))))


def normed(out: Path) -> None:
    """Runs of a model whose buffers follow each process's own items end alike on all, and as if resumed."""
    for sharding in ("none", "fsdp"):
        run, ends = out / f"normed_{sharding}", []
        for resume in (False, True):
            torch.manual_seed(0)
            model = Normed()
            settings = replace(DENSE, sharding=sharding, accumulate=2)
            found = {"evaluate": _evaluate, "run_dir": run, "resume": resume, "progress": False}
            history = train(model, images(), settings, **found)
            mine = {name: tensor.tolist() for name, tensor in model.state_dict().items()}
            everyones: list[Any] = [None] * torch.distributed.get_world_size()
            torch.distributed.all_gather_object(everyones, (mine, history))
            ends += everyones
            if is_main_process() and not resume:
                shutil.rmtree(run / "checkpoints/step_00000012")
            torch.distributed.barrier()
        for end in ends:
            assert end == ends[0], sharding


def _evaluate(model: nn.Module) -> dict[str, float]:
    inputs, labels = images(40, seed=9)
    with torch.inference_mode():
        return {"score": float(F.cross_entropy(model(inputs.to(next(model.parameters()).dtype)), labels))}


def killed(out: Path, moment: str, **changes: Any) -> None:
    """``dense``, until the last of the processes is killed: before step N (``"5"``), or while it writes a checkpoint."""
    die_here = int(os.environ.get("RANK", 0)) == int(os.environ.get("WORLD_SIZE", 1)) - 1

    def die(*_: Any, **__: Any) -> None:
        if die_here:
            os.kill(os.getpid(), signal.SIGKILL)

    calls: list[Path] = []

    def half_a_file(tensors: Any, path: Path) -> None:
        calls.append(path)
        save_file(tensors, path)
        if len(calls) == 4:  # the optimiser's, in the second checkpoint
            path.write_bytes(path.read_bytes()[:-100])
            die()

    def before_the_name(*arguments: Any) -> None:
        calls.append(Path())
        die() if len(calls) == 2 else publish(*arguments)

    def half_of_an_old_one(path: Path, **arguments: Any) -> None:
        if path.suffix == ".old":
            (path / "state.json").unlink()
            die()
        rmtree(path, **arguments)

    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        calls.append(Path())
        if moment == str(len(calls)):
            die()
        return F.cross_entropy(outputs, targets)

    publish, rmtree = checkpoint.publish, checkpoint.shutil.rmtree
    if moment.isdigit():
        changes["loss"] = loss
    elif moment == "half a file":
        checkpoint.save_file = half_a_file  # type: ignore[assignment]
    elif moment == "before the name":
        checkpoint.publish = before_the_name  # type: ignore[assignment]
    else:
        checkpoint.shutil.rmtree = half_of_an_old_one  # type: ignore[assignment]
        changes["keep_checkpoints"] = 1
    dense(out, **changes)


def killed_sharded(out: Path, moment: str) -> None:
    killed(out, moment, accumulate=2, **FSDP)


def refused(out: Path) -> None:
    """A sharded run in which the second process cannot write its part of the second checkpoint; each leaves its error."""
    rank, calls = int(os.environ["RANK"]), []

    def full(tensors: Any, path: Path) -> None:
        calls.append(path)
        if rank == 1 and len(calls) == 3:
            raise OSError(errno.ENOSPC, "No space left on device")
        save_file(tensors, path)

    checkpoint.save_file = full  # type: ignore[assignment]
    try:
        dense(out / "run", **FSDP)
    except (OSError, RuntimeError) as error:
        (out / f"error_{rank}").write_text(f"{type(error).__name__}: {error}")


def slowly(out: Path) -> None:
    """``dense``, sharded, in steps long enough to be killed in; each process leaves its number in ``out``."""
    (out / f"{os.getpid()}.pid").touch()

    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        time.sleep(0.1)
        return F.cross_entropy(outputs, targets)

    dense(out / "run", loss=loss, **FSDP)


def held(kind: str) -> dict[str, int]:
    """How many numbers this process holds after a step, and while a block of the model runs."""
    model: nn.Module = vit().double()
    blocks, objective = "blocks", cast(Objective, Supervised(F.cross_entropy))
    if kind == "bank":
        small = vit(16, 2).double()
        weit.kronify(small, weit.kronify(model, SPEC))
        model, blocks = Elastic(model, [small]), "model.blocks"
        objective = lambda model, inputs, targets, step: F.cross_entropy(model(inputs, size=step), targets)  # noqa: E731
    found = {"all": sum(p.numel() for p in model.parameters())}
    sharded = ShardedCopy(model, objective, Processes())
    parameters = list(sharded.model.parameters())

    def count(*_: Any) -> None:
        found["whole in a block"] = sum(p.numel() for p in sharded.model.parameters() if not isinstance(p, DTensor))

    sharded.model.get_submodule(f"{blocks}.1.attn").register_forward_pre_hook(count)
    optimizer = torch.optim.AdamW(parameters)
    inputs, targets = images()
    sharded.module(inputs.double(), targets, 0).backward()
    optimizer.step()
    found["model"] = sum(p.numel() for p in model.parameters())
    found["parameters"] = sum(p.to_local().numel() for p in parameters)
    found["gradients"] = sum(p.grad.to_local().numel() for p in parameters)
    found["moments"] = sum(optimizer.state[p]["exp_avg"].to_local().numel() for p in parameters)
    return found


FSDP = {"sharding": "fsdp"}
RUNS: dict[str, Callable[[Path], Result]] = {
    "dense_ddp": lambda out: dense(out / "dense_ddp"),
    "dense_fsdp": lambda out: dense(out / "dense_fsdp", accumulate=2, **FSDP),
    "dense_recomputed": lambda out: dense(activation_checkpointing=True, **FSDP),
    "dense_bf16": lambda out: dense(dtype=torch.float32, mixed_precision="bf16", **FSDP),
    "dense_resumed": lambda out: dense(out / "dense_of_one", resume=True, **FSDP),
    "dense_killed": lambda out: dense(out / "dense_killed", resume=True, accumulate=2, **FSDP),
    "bank_ddp": lambda out: bank(out / "bank_ddp", accumulate=2, activation_checkpointing=True),
    "bank_fsdp": lambda out: bank(out / "bank_fsdp", **FSDP),
    "bank_recomputed": lambda out: bank(activation_checkpointing=True, **FSDP),
    "bank_resumed": lambda out: bank(out / "bank_of_one", resume=True, **FSDP),
    "slowly_resumed": lambda out: dense(out / "run", resume=True, **FSDP),
    "slowly_whole": lambda out: dense(out / "whole", **FSDP),
    "fitted_ddp": lambda out: fitted(),
    "fitted_fsdp": lambda out: fitted(**FSDP),
    "ranked": lambda out: ranked(),
    "halves": lambda out: halves(workers=1, accumulate=2, **FSDP),
}


def main(out: Path, names: list[str]) -> None:
    torch.set_num_threads(1)
    for name in names:
        if name == "held":
            for kind in ("dense", "bank"):
                (out / f"held_{kind}_{os.environ['RANK']}.json").write_text(json.dumps(held(kind)))
        elif name == "slowly":
            slowly(out)
        elif name == "normed":
            normed(out)
        else:
            module, history = RUNS[name](out)
            if is_main_process():
                save_file({key: each.clone() for key, each in module.state_dict().items()}, out / f"{name}.safetensors")
                (out / f"{name}.json").write_text(json.dumps(history))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
    sys.stdout.flush(), sys.stderr.flush()
    os._exit(0)  # a thread of torch's may outlive the interpreter, which now and then aborts when all is done
