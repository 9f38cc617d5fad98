"""Parameters, gradients and optimiser state spread over the processes: torch's FSDP2 on a copy of the model's modules.

The templates of a bank are one parameter in many layers, and ``weit.masks.Elastic`` cuts pieces out of the parameters of a
model whose forward pass it never calls. So whatever is shared between blocks, and everything under an objective
of its own, is one unit: put together before a step's forward pass, and spread again after its backward pass.
"""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import Shard

from weit.engine.blocks import blocks_of
from weit.engine.objective import Objective, Supervised, WithObjective
from weit.engine.processes import Processes
from weit.engine.shards import whole


class ShardedCopy:
    """A copy of a model's modules that is sharded, while the model itself keeps its parameter objects, without numbers.

    So nothing has to be taken off the model again, and whoever else holds its parameters, such as a ``TemplateBank``, holds
    them still when ``fill`` brings the numbers back. Buffers are those of the model.

    Args:
        model: on the device it is trained on; the numbers of the first process count.
        objective: what ``module`` computes.

    Attributes:
        model: the sharded copy, whose parameters are ``DTensor``.
        module: it and the objective as one module, the root of the sharding.
    """

    def __init__(self, model: nn.Module, objective: Objective, processes: Processes) -> None:
        tensors = [*model.parameters(), *model.buffers()]
        processes.take_first(tensors)
        self.model = copy.deepcopy(model, {id(tensor): tensor for tensor in tensors})
        self.module = WithObjective(self.model, objective)
        mesh = init_device_mesh(processes.accelerator.device.type, (processes.count,))

        def placement(parameter: nn.Parameter) -> Shard | None:
            # Templates are few and large: along the first axis there would be nothing for most of many processes.
            return next((Shard(i) for i, size in enumerate(parameter.shape) if size % processes.count == 0), None)

        units = _separable(self.model) if isinstance(objective, Supervised) else []
        for unit in (*units, self.module):
            fully_shard(unit, mesh=mesh, shard_placement_fn=placement)
        self._pairs = list(zip(model.parameters(), self.model.parameters(), strict=True))
        self._empty()

    def fill(self) -> None:
        """Give the model its numbers back; every process has to call this."""
        for original, sharded in self._pairs:
            original.data = whole(sharded)

    @contextmanager
    def filled(self) -> Iterator[None]:
        """The model with its numbers, as long as the block runs."""
        self.fill()
        yield
        self._empty()

    def _empty(self) -> None:
        for original, _ in self._pairs:
            original.data = original.data.new_empty(0)


def _separable(model: nn.Module) -> list[nn.Module]:
    """The blocks of ``model`` that share no parameter with anything outside."""
    holders: dict[int, set[nn.Module]] = defaultdict(set)
    for module in model.modules():
        for parameter in module.parameters(recurse=False):
            holders[id(parameter)].add(module)
    blocks = []
    for block in blocks_of(model):
        inside = set(block.modules())
        if all(holders[id(parameter)] <= inside for parameter in block.parameters()):
            blocks.append(block)
    return blocks
