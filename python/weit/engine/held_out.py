"""A part of the data that is kept from training, to score what was trained."""

from __future__ import annotations

import torch
from torch import nn

from weit.engine.data import Batches, Data, item_count, split, tensors_of
from weit.engine.objective import Loss, outputs_of, placed
from weit.engine.seeds import own_randomness
from weit.engine.suitable import check_suitable

HELD_OUT_LOSS = "held_out_loss"
_SHARE, _MOST = 10, 16


class HeldOut:
    """Every tenth item of ``data``, drawn at random, in whole batches, but at most 16; called, the mean loss there.

    Fewer items than a batch are one batch.

    Args:
        data, loss, batch_size, seed: as for ``weit.engine.train``.
        model: what the data are checked against.

    Attributes:
        rest: all other items, as ``data`` gives them. Of a single item both parts are made.

    Raises:
        TypeError, ValueError: as ``weit.engine.data.Batches`` and ``weit.engine.suitable.check_suitable``.
    """

    def __init__(self, data: Data, model: nn.Module, loss: Loss, batch_size: int, seed: int) -> None:
        share = max(1, item_count(data) // _SHARE)
        size = min(share, batch_size)
        self._steps = min(share // size, _MOST)
        self.rest, held = split(data, self._steps * size, seed)
        self._loss, self._seed = loss, seed
        with own_randomness(seed):
            self._batches = Batches(held, size, seed=seed)
            check_suitable(model, self._batches, loss)

    def __call__(self, model: nn.Module) -> dict[str, float]:
        """``{"held_out_loss": …}`` of a model in evaluation mode, on its device."""
        device, total = next(model.parameters()).device, 0.0
        with own_randomness(self._seed), torch.no_grad():
            for inputs, targets in self._batches.stream(0, self._steps):
                outputs = outputs_of(model, tuple(tensor.to(device) for tensor in tensors_of(inputs)))
                self._loss = placed(self._loss, outputs.device)
                total += self._loss(outputs, targets.to(device)).item()
        return {HELD_OUT_LOSS: total / self._steps}
