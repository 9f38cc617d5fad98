"""TLEG: every block is a linear function of its depth, so that two blocks' worth of numbers make any depth."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from weit.engine.data import Data
from weit.engine.objective import Loss
from weit.engine.soft_targets import SoftTargets
from weit.rivals.axes import require_fit
from weit.rivals.layers import common_blocks, require_source, stack_blocks, unstack_blocks
from weit.rivals.learning import Composed, learn


def initialize_like(
    target: nn.Module,
    source: nn.Module | None,
    *,
    seed: int = 0,
    data: Data | None = None,
    steps: int = 0,
    lr: float = 1e-3,
    batch_size: int = 64,
    alpha: float = 1.0,
    temperature: float = 2.0,
    loss: Loss = F.cross_entropy,
    distance: Loss | None = None,
    **settings: Any,
) -> nn.Module:
    """Lay the blocks of ``target`` on the line that is nearest to those of ``source``, in place, and return it.

    Each tensor of block ``l`` of ``L`` is ``B + (l - 1) / (L - 1) · A``; a single block is ``B``. The learngene, ``A`` and
    ``B``, is the least-squares fit to the blocks of the trained ``source``. With ``data`` and ``steps`` it is then trained
    as in the paper: the blocks of an auxiliary model of ``source``'s depth are held on the line, and it learns from
    ``source``'s soft answers. What lies outside the blocks is ``source``'s, trained along where there are steps.

    The paper has no trained model to fit and starts its auxiliary model fresh; which tensors of a block lie on the line
    it does not list one by one: here all do, norms and biases too.

    Args:
        target: a vision transformer of any depth, in all else of the same sizes as ``source``.
        source: a trained one, which is also the teacher.
        data, steps, lr, batch_size, seed, alpha, temperature, loss, distance, **settings: of the distillation; as for
            ``weit.rivals.distillation``.

    Raises:
        ValueError: ``source`` is missing, of another family or of other sizes; ``target`` is unchanged then.

    Source: Xia et al., "Transformer as Linear Expansion of Learngene", AAAI 2024 (arXiv 2312.05614).
    """
    trained = require_source(source)
    learngene = _Learngene(trained, common_blocks(target, trained))
    ours, _ = stack_blocks(target.state_dict(), learngene.blocks)
    depth = len(next(iter(ours.values())))
    require_fit(learngene.expand(depth), target.state_dict(), "depth")
    objective = SoftTargets(trained, loss, alpha, temperature, distance)
    learn(learngene, data, steps, loss=loss, objective=objective, lr=lr, batch_size=batch_size, seed=seed, **settings)
    target.load_state_dict(learngene.expand(depth))
    return target


class _Learngene(Composed):
    """``A`` and ``B`` of every tensor of a block, and what lies outside the blocks; runs at the depth of ``source``."""

    def __init__(self, source: nn.Module, blocks: str) -> None:
        super().__init__(source)
        self.blocks = blocks
        layers, outside = stack_blocks(source.state_dict(), blocks)
        self.depth = len(next(iter(layers.values())))
        self.names, self.outside_names = list(layers), list(outside)
        lines = [_fit_line(stacked) for stacked in layers.values()]
        self.B = nn.ParameterList(start for start, _ in lines)
        self.A = nn.ParameterList(slope for _, slope in lines)
        self.outside = nn.ParameterList(tensor.clone() for tensor in outside.values())

    def expand(self, depth: int) -> dict[str, Tensor]:
        """The state dict of a model with that many blocks."""
        layers = {}
        for name, start, slope in zip(self.names, self.B, self.A, strict=True):
            place = torch.linspace(0, 1, depth, device=start.device, dtype=start.dtype)
            layers[name] = start + place.view(-1, *[1] * start.dim()) * slope
        return unstack_blocks(layers, dict(zip(self.outside_names, self.outside, strict=True)), self.blocks)

    def compose(self) -> dict[str, Tensor]:
        return self.expand(self.depth)


def _fit_line(layers: Tensor) -> tuple[Tensor, Tensor]:
    """Start and slope of the line nearest to ``layers``, ``(depth, ...)``; one layer alone has no slope."""
    place = torch.linspace(0, 1, len(layers), dtype=torch.float64, device=layers.device)
    design = torch.stack([torch.ones_like(place), place], 1)
    start, slope = torch.tensordot(torch.linalg.pinv(design), layers.double(), 1).to(layers.dtype)
    return start, slope
