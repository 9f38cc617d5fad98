"""The processes of one run, and what they do as one."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState
from accelerate.utils import (
    DistributedDataParallelKwargs,
    DistributedType,
    GradientAccumulationPlugin,
    broadcast_object_list,
    gather_object,
)
from torch import Tensor

Result = TypeVar("Result")


def usable_cores() -> int:
    """Number of cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def started_together() -> int:
    """How many processes ``torchrun`` or ``accelerate launch`` started, this one among them."""
    return int(os.environ.get("WORLD_SIZE", 1)) if "LOCAL_RANK" in os.environ else 1


def is_main_process() -> bool:
    """Whether this is the process that prints and writes what there is one of; asked once training has begun."""
    return not torch.distributed.is_initialized() or torch.distributed.get_rank() == 0


def training_device() -> torch.device:
    """Where models are trained: a GPU with CUDA or ROCm, else the CPU, as the operators run on no other devices."""
    return torch.device("cuda") if torch.cuda.is_available() else torch.device("cpu")


@contextmanager
def own_accelerate() -> Iterator[None]:
    """Run a block, or a function, on accelerate as if new; an ``Accelerator`` of the caller's works on as before afterwards.

    All ``Accelerator`` in a process share their settings, among them precision and whether a step is to be taken yet.
    """
    shared = [state._shared_state for state in (AcceleratorState, GradientState)]
    before = [dict(each) for each in shared]
    try:
        for each in shared:
            each.clear()
        yield
    finally:
        for each, kept in zip(shared, before, strict=True):
            each.clear()
            each.update(kept)


class Processes:
    """Those that were started together, by ``torchrun`` or ``accelerate launch``, or this one alone.

    accelerate holds a process to the precision it first asked for: for another one, and wherever the caller may have an
    ``Accelerator``, make this inside ``own_accelerate``.

    Args:
        mixed_precision: as in ``TrainConfig``.
        find_unused_parameters: as in ``train``.

    Raises:
        ValueError: accelerate was told to shard the model by itself.
        RuntimeError: the processes that were started together found no way to talk to each other.
    """

    def __init__(self, mixed_precision: str = "no", find_unused_parameters: bool = False) -> None:
        self.accelerator = Accelerator(
            # Without this, processes that torchrun started where there are CPUs only would each train alone.
            cpu=training_device().type == "cpu",
            mixed_precision=mixed_precision,
            # Given, since accelerate would otherwise take a number from its environment and divide by it once more.
            gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=1),
            kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=find_unused_parameters)],
        )
        kind = self.accelerator.distributed_type
        if kind in (DistributedType.FSDP, DistributedType.DEEPSPEED, DistributedType.MEGATRON_LM):
            raise ValueError(f'accelerate must not shard by itself, got {kind.value}; sharding="fsdp" shards the model')
        self.rank: int = self.accelerator.process_index
        self.count: int = self.accelerator.num_processes
        self.is_main = self.rank == 0
        if (started := started_together()) != self.count:
            raise RuntimeError(f"{started} processes were started together, but accelerate connects {self.count}")

    def of_first(self, value: Result) -> Result:
        """``value`` of the first process, on every one."""
        return broadcast_object_list([value])[0] if self.count > 1 else value

    def of_all(self, value: Result) -> list[Result]:
        """``value`` of each process, on every one."""
        return gather_object([value])

    def take_first(self, tensors: Iterable[Tensor]) -> None:
        """Put the numbers of the first process's ``tensors`` into those of every other."""
        if self.count > 1:
            own = [each.detach() for each in tensors]
            dense = [each.contiguous() for each in own]  # memory is sent as it lies
            under_way = [torch.distributed.broadcast(each, 0, async_op=True) for each in dense]
            for work, to, numbers in zip(under_way, own, dense, strict=True):
                work.wait()
                if numbers is not to:
                    to.copy_(numbers)

    def together(self, action: Callable[[], Result]) -> Result:
        """Run ``action`` on every process; where one fails, all raise, so that none is left waiting for the others.

        Raises:
            Exception: what ``action`` raised here. RuntimeError: it failed on another process only.
        """
        failure: Exception | None = None
        try:
            result = action()
        except Exception as error:
            failure = error
        failed = self.accelerator.reduce(
            torch.tensor(float(failure is not None), device=self.accelerator.device), "sum"
        )
        if failure is not None:
            raise failure
        if failed:
            raise RuntimeError(f"{int(failed)} of {self.count} processes failed; theirs is the message that says why")
        return result
