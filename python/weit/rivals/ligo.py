"""LiGO: linear growth operators, learned on a little data, that make a bigger model of a smaller trained one."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from weit.engine.data import Data
from weit.engine.objective import Loss
from weit.heads import head_dims, require_same_heads
from weit.matching import DENSE
from weit.rivals.axes import Axis, copies, require_fit, stream_sizes, width_axes
from weit.rivals.layers import common_blocks, require_source, stack_blocks, unstack_blocks
from weit.rivals.learning import Composed, learn


def initialize_like(
    target: nn.Module,
    source: nn.Module | None,
    *,
    seed: int = 0,
    data: Data | None = None,
    steps: int = 100,
    lr: float = 5e-3,
    batch_size: int = 64,
    noise: float = 0.01,
    loss: Loss = F.cross_entropy,
    **settings: Any,
) -> nn.Module:
    """Grow the smaller, trained ``source`` to ``target`` by operators that are learned first, in place, and return it.

    ``W_l = Σ_j w_lj · B W_j Aᵀ``: ``B`` has a row for each feature that a layer writes in the larger model, ``A`` one for
    each that it reads, and ``w`` mixes the blocks. The residual stream, the queries, the keys, the values and the hidden
    features of the MLP have one ``B`` each, for all blocks together, and ``A`` is that of the stream that is read; norms,
    biases and embeddings are grown by the ``B`` of their stream. Each tensor of a block has a ``w`` of its own.

    Choices that the paper leaves open or makes otherwise: operators start at duplication in the order of the features
    and at stacked blocks, plus normal noise, without which copies would stay copies; the authors' code starts the rows
    that are added at random means. The paper ties ``A = B``; here ``A`` is ``B`` with each column divided by its sum of
    squares, so that what is written in copies is read as their mean and duplication preserves the function. Where a
    stream does not grow its operator is the identity.

    Args:
        target: a vision transformer, no narrower than ``source``, with heads of the same size; any depth.
        source: of the same family; frozen, and unchanged.
        data: what the operators are learned on; ``None`` for the starting point alone.
        steps, lr, batch_size, seed, **settings: fields of ``weit.engine.TrainConfig``, and ``progress``; weight decay
            is 0 unless given. On digits, from 32x3 to 64x6, operators learned at 3e-2 were of no use.
        noise: of the operators' starting point; in ``B`` its standard deviation is ``noise / sqrt(features of source)``.

    Raises:
        ValueError: ``source`` is missing, wider or of another family; ``target`` is unchanged then.

    Source: Wang et al., "Learning to Grow Pretrained Models for Efficient Transformer Training", ICLR 2023
    (arXiv 2303.00980), whose operators are learned in 100 steps.
    """
    small = require_source(source)
    growth = Growth(target, small, noise=noise, seed=seed)
    settings = {"lr": lr, "batch_size": batch_size, "seed": seed, "weight_decay": 0.0, **settings}
    learn(growth, data, steps, loss=loss, **settings)
    target.load_state_dict(growth.compose())
    return target


class Growth(Composed):
    """``source`` grown to ``target``'s size by the operators that are the parameters of this module.

    Attributes:
        width: stream -> ``B``, ``(new, old)``, of each stream that grows.
        depth: ``w``, ``(new depth, old depth)``, of each tensor of a block, in the order of ``names``.
    """

    def __init__(self, target: nn.Module, source: nn.Module, *, noise: float, seed: int) -> None:
        super().__init__(target)
        self.blocks, self.axes = common_blocks(target, source), width_axes(target)
        require_same_heads(target, head_dims(source))
        ours, theirs = target.state_dict(), source.state_dict()
        old_sizes, self.sizes = stream_sizes(theirs, width_axes(source)), stream_sizes(ours, self.axes)
        layers, outside = stack_blocks(theirs, self.blocks)
        our_layers, _ = stack_blocks(ours, self.blocks)
        self.names, self.outside_names = list(layers), list(outside)
        self.readers = {f"{path}.weight" for path, module in target.named_modules() if isinstance(module, DENSE)}
        for i, tensor in enumerate([*layers.values(), *outside.values()]):
            self.register_buffer(f"source_{i}", tensor.clone())  # moves along with this module, and learns nothing
        generator = torch.Generator().manual_seed(seed)
        self.width = nn.ParameterDict()
        for stream, new in self.sizes.items():
            if (old := old_sizes[stream]) > new:
                raise ValueError(f"source must be no wider than target, but has {old} {stream} features, target {new}")
            if old < new:
                duplication = torch.eye(old)[copies(old, new, (stream,))]
                self.width[stream] = duplication + noise / old**0.5 * torch.randn(new, old, generator=generator)
        old_depth, new_depth = (len(next(iter(each.values()))) for each in (layers, our_layers))
        stacked = torch.eye(old_depth)[torch.arange(new_depth) % old_depth]
        self.depth = nn.ParameterList(
            stacked + noise / old_depth * torch.randn(stacked.shape, generator=generator) for _ in layers
        )
        self.to(next(source.parameters()))
        require_fit(self.compose(), ours, "width and depth")

    def compose(self) -> dict[str, Tensor]:
        sources = [self.get_buffer(f"source_{i}") for i in range(len(self.names) + len(self.outside_names))]
        inside, outside = sources[: len(self.names)], sources[len(self.names) :]
        layers = {}
        for name, mix, tensors in zip(self.names, self.depth, inside, strict=True):
            example = f"{self.blocks}.0.{name}"
            layers[name] = torch.stack([self._widen(example, each) for each in torch.tensordot(mix, tensors, 1)])
        rest = {name: self._widen(name, each) for name, each in zip(self.outside_names, outside, strict=True)}
        return unstack_blocks(layers, rest, self.blocks)

    def _widen(self, name: str, tensor: Tensor) -> Tensor:
        for axis, of in enumerate(self.axes[name]):
            operator = self._operator(of, reads=axis == 1 and name in self.readers)
            if operator is not None:
                tensor = torch.tensordot(operator, tensor, dims=([1], [axis])).movedim(0, axis)
        return tensor

    def _operator(self, of: Axis, reads: bool) -> Tensor | None:
        """``B`` or ``A`` of the streams along an axis; ``None`` where none of them grows."""
        if not any(stream in self.width for stream in of):
            return None
        blocks = [self.width[stream] if stream in self.width else self._identity(stream) for stream in of]
        if reads:
            blocks = [block / block.square().sum(0) for block in blocks]
        return torch.block_diag(*blocks)

    def _identity(self, stream: str) -> Tensor:
        return torch.eye(self.sizes[stream]).to(self.depth[0])
