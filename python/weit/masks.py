"""One set of parameters that runs at many sizes: prefix masks over depth and width that save the work they mask."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.func import functional_call

from weit.engine.seeds import SIZE, uniform
from weit.heads import head_dims, require_same_heads
from weit.nn.factors import KronFactors
from weit.scalers import check_grid, input_axes


class Elastic(nn.Module):
    """A kronified model that also runs as smaller models of its family, on prefixes of its own parameters.

    A smaller size keeps the first layers, the first block rows and columns of every scaler grid, and the first features
    of norms, biases, embeddings and heads. Weights grow by ``sqrt(inputs / inputs kept)``, which keeps the variance of
    their outputs, as ``weit.scalers.lay_out`` does. A smaller size runs through a skeleton that holds no numbers, on
    differentiable slices of the big model's parameters: it costs what a model of that size costs, and its gradients
    land in the big one.

    Args:
        model: the big model; the only one whose parameters are parameters of this module.
        smaller: models with the same parameter names (or some of them) and no larger shapes, on the same template
            bank. They are copied without their numbers; buffers (running statistics) are each size's own.

    Raises:
        ValueError: a smaller model that is no part of ``model``, has attention heads of another size, or is of another
            width where layers are interleaved.
    """

    def __init__(self, model: nn.Module, smaller: Sequence[nn.Module] = ()) -> None:
        super().__init__()
        self.model = model
        # In a plain list, so that skeletons are no submodules and what they hold is in no state dict.
        self._skeletons = [_Skeleton(*_skeleton(model, small, f"smaller[{i}]")) for i, small in enumerate(smaller)]

    @property
    def sizes(self) -> int:
        """How many sizes there are: the full one, 0, and the smaller ones, 1, 2, …"""
        return 1 + len(self._skeletons)

    @property
    def skeletons(self) -> list[nn.Module]:
        """The modules that run in place of the model at the smaller sizes, for whoever changes how modules run."""
        return [skeleton.module for skeleton in self._skeletons]

    def forward(self, *inputs: Tensor, size: int = 0) -> Any:
        """What the model of that size returns for ``inputs``."""
        if size == 0:
            return self.model(*inputs)
        skeleton = self._skeletons[size - 1]
        return functional_call(skeleton.module, skeleton.parameters(), inputs, tie_weights=False)

    def train(self, mode: bool = True) -> Elastic:
        super().train(mode)
        for skeleton in self._skeletons:
            skeleton.module.train(mode)
        return self

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        super()._apply(fn, recurse)
        for skeleton in self._skeletons:
            for module in skeleton.module.modules():
                for name, buffer in module._buffers.items():
                    module._buffers[name] = buffer if buffer is None else fn(buffer)
        return self


@dataclass
class _Slice:
    """One parameter of a skeleton: where it lives in the big model, which part of it is meant, and times what."""

    name: str
    owner: nn.Module
    leaf: str
    index: tuple[slice, ...] | None
    gain: float


@dataclass
class _Skeleton:
    module: nn.Module
    slices: list[_Slice]

    def parameters(self) -> dict[str, Tensor]:
        parameters = {}
        for part in self.slices:
            whole = part.owner._parameters[part.leaf]
            assert whole is not None
            tensor = whole if part.index is None else whole[part.index]
            parameters[part.name] = tensor if part.gain == 1 else tensor * part.gain
        return parameters


def _skeleton(model: nn.Module, small: nn.Module, argument: str) -> tuple[nn.Module, list[_Slice]]:
    require_same_heads(small, head_dims(model), target_name=argument, source_name="model")
    slices = []
    inputs = input_axes(model)
    for name, parameter in small.named_parameters(remove_duplicate=False):
        path, _, leaf = name.rpartition(".")
        try:
            whole = model.get_parameter(name)
        except AttributeError:
            raise ValueError(f"{argument} must be a part of model, but model has no parameter {name!r}") from None
        shape, limits = tuple(parameter.shape), tuple(whole.shape)
        if len(shape) != len(limits) or any(size > limit for size, limit in zip(shape, limits, strict=True)):
            raise ValueError(f"{argument} must be a part of model, but {name!r} is {shape}, in model {limits}")
        if leaf == "templates" and parameter is not whole:
            raise ValueError(f"{argument} must share the templates of model, but {name!r} is another tensor")
        owner = model.get_submodule(path)
        if leaf == "scalers":
            check_grid(owner, f"{name!r} of {argument}", shape, limits)
        index = None if shape == limits else tuple(map(slice, shape))
        axis = inputs.get(name)
        gain = 1.0
        if axis is not None:  # by features, of which blocks hold different numbers where a template is cut
            gain = (_inputs(owner, limits[axis]) / _inputs(small.get_submodule(path), shape[axis])) ** 0.5
        slices.append(_Slice(name, owner, leaf, index, gain))
    empty = {id(p): nn.Parameter(p.detach().to("meta"), requires_grad=False) for p in small.parameters()}
    return copy.deepcopy(small, empty), slices


def _inputs(layer: nn.Module, entries: int) -> int:
    """Features that a weight with so many entries along its input axis sums over; those of scalers are blocks."""
    return layer.dense_shape[1] if isinstance(layer, KronFactors) else entries


def draw_size(seed: int, step: int, sizes: int, full_share: float) -> int:
    """The size of a step, the same on every process: 0 with probability ``full_share``, else any of the others alike."""
    draw = uniform(seed, SIZE, step)
    if sizes == 1 or draw < full_share:
        return 0
    return 1 + int((draw - full_share) / (1 - full_share) * (sizes - 1))
