"""What a pre-training will need, computed before it runs, on models without numbers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from weit.convert import kronify
from weit.masks import Elastic
from weit.models import create_model
from weit.models.sizes import example_inputs, training_flops
from weit.pretrain import PretrainConfig

_COPIES = 4  # of each parameter: itself, its gradient, two moments of AdamW


@dataclass(frozen=True)
class Prediction:
    """What one pre-training needs.

    Attributes:
        parameters: numbers that learn: templates, scalers and all the model has beside them.
        templates: of these, numbers in templates.
        dense_parameters: of the dense model of the full size.
        state_bytes: parameters, gradients and optimiser state in float32, all processes together.
        saved_bytes: what one item leaves for the backward pass at full size, in float32.
        flops: of a step, on average over the sizes it may run at, each priced like the dense model of its size.
        steps: as configured.
    """

    parameters: int
    templates: int
    dense_parameters: int
    state_bytes: int
    saved_bytes: int
    flops: float
    steps: int

    def peak_bytes(self, processes: int, config: PretrainConfig) -> float:
        """Largest memory of one process: its part of the state, and activations of the items it has at a time.

        bfloat16 halves most activations; the libraries' workspaces are not counted.
        """
        share = processes if config.sharding != "none" else 1
        width = 1.0 if config.mixed_precision == "no" else 0.5
        return self.state_bytes / share + config.items_at_a_time(processes) * self.saved_bytes * width

    def hours(self, rate: float, processes: int) -> float:
        """Time if each process sustains ``rate`` floating-point operations a second."""
        return self.steps * self.flops / (rate * processes) / 3600

    def describe(self, config: PretrainConfig, processes: int, rate: float) -> str:
        """All of it in words.

        Raises:
            ValueError: the processes cannot share a batch evenly.
        """
        return (
            f"{self.templates:,} numbers in templates, {self.parameters:,} that learn in all; "
            f"the dense model has {self.dense_parameters:,}.\n"
            f"{self.peak_bytes(processes, config) / 2**30:.1f} GiB in each of {processes} processes of "
            f"{config.items_at_a_time(processes)} items at a time: {self.state_bytes / 2**30:.2f} GiB of "
            f"state, {self.saved_bytes / 2**20:.1f} MiB an item in float32.\n"
            f"{self.flops / 1e12:.3g} Tflop a step; {self.hours(rate, processes):.2g} hours for {self.steps} steps at "
            f"{rate / 1e12:g} TFLOP/s a process."
        )


def predict(
    model: str, arguments: dict[str, Any], smaller: Sequence[dict[str, Any]], config: PretrainConfig
) -> Prediction:
    """Predict ``weit pretrain`` of ``model`` at the full size that ``arguments`` give and at the ``smaller`` ones.

    Raises:
        ValueError: arguments that the model refuses, or a size that is no part of the full one.
    """
    with torch.device("meta"):
        network, *small = (create_model(model, **each) for each in (arguments, *smaller))
        dense = sum(parameter.numel() for parameter in network.parameters())
        bank = kronify(network, config.spec)
        for each in small:
            kronify(each, bank)
        Elastic(network, small)  # refuses what is no part
        inputs = example_inputs(network, arguments)
        saved = saved_bytes(network, lambda: network(*inputs))
    parameters = sum(parameter.numel() for parameter in network.parameters())
    prices = [training_flops(model, each) for each in (arguments, *smaller)]
    full = config.full_share if smaller else 1.0
    average = full * prices[0] + (1 - full) * sum(prices[1:]) / max(1, len(prices) - 1)
    return Prediction(
        parameters,
        bank.num_parameters(),
        dense,
        4 * _COPIES * parameters,
        saved,
        config.batch_size * average,
        config.steps,
    )


def saved_bytes(module: nn.Module, call: Callable[[], object]) -> int:
    """Bytes of all storages that ``call`` keeps for a backward pass, each once, without those of ``module``'s own tensors.

    Works on tensors without numbers too.
    """
    kept: list[Tensor] = []

    def pack(tensor: Tensor) -> Tensor:
        kept.append(tensor)
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        result = call()
    own = {_key(tensor) for tensor in (*module.parameters(), *module.buffers())}
    storages = {_key(t): t.untyped_storage().nbytes() for t in kept if _key(t) not in own}
    del result
    return sum(storages.values())


def _key(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata  # tensors without numbers have no address
