"""What linear and convolution layers share: templates, scalers and bias in place of a dense weight."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from math import ceil, prod, sqrt
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from weit.nn.init import default_template_size, nearest_scalers, reset_scalers, reset_templates
from weit.nn.loading import LoadsWhole
from weit.nn.sharing import KeepsShared
from weit_kernels import kron_weight, nearest_kron
from weit_kernels.shapes import LAYOUTS, PATHS, as_int, check_choice, check_finite, check_floating

Dense = TypeVar("Dense", bound=nn.Module)
Layer = TypeVar("Layer", bound="KronFactors")


class ComputesWeight(LoadsWhole):
    """Base of layers whose dense weight is computed from what they hold, and so can be read but not assigned."""

    _from_dense = "KronLinear.from_linear"

    def __setattr__(self, name: str, value: Any) -> None:
        found = getattr(type(self), name, None)
        if isinstance(found, property) and found.fset is None:
            raise AttributeError(
                f"{name} of a {type(self).__name__} is computed each time it is read, so it cannot be assigned; "
                f"{self._from_dense} takes a dense layer's numbers, and reset_parameters draws new ones"
            )
        super().__setattr__(name, value)

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        try:
            return super().load_state_dict(state_dict, strict, assign)
        except RuntimeError as error:
            # Said here alone: a layer inside a model is not told whether it is loaded strictly.
            if "weight" not in state_dict:
                raise
            raise RuntimeError(
                f"{error}\n\tThis is the state of a dense layer, which {self._from_dense} takes."
            ) from None


class KronFactors(KeepsShared, ComputesWeight):
    """Base of Kron layers: the factors of ``W (out, in, *kernel)``, from and to dense layers."""

    templates: nn.Parameter
    scalers: nn.Parameter
    bias: nn.Parameter | None
    role: str | None = None  # what the templates are in a bank, if ``kronify`` made the layer

    def _make_factors(
        self,
        shape: tuple[int, int],
        kernel: tuple[int, ...],
        bias: bool,
        templates: int | nn.Parameter,
        template_shape: tuple[int, int] | None,
        layout: str,
        path: str,
        device: Any,
        dtype: torch.dtype | None,
    ) -> None:
        check_choice("layout", layout, LAYOUTS)
        check_choice("path", path, PATHS)
        _check_placement(device, dtype)
        self.layout, self.path = layout, path
        self._dense_shape, self._kernel = shape, kernel
        self._owns_templates = not isinstance(templates, nn.Parameter)
        if isinstance(templates, nn.Parameter):
            _check_given(templates, kernel, template_shape, device, dtype)
            device, dtype = templates.device, templates.dtype
        else:
            N = check_size("templates", templates, "an int or an nn.Parameter")
            default = default_template_size(shape[:1]), default_template_size(shape[1:])
            p, q = check_template_shape(template_shape) or default
            storage = torch.empty(N, p, q, *kernel, device=device, dtype=dtype)
            check_floating("templates", storage)
            templates = nn.Parameter(storage)
        N, p, q = templates.shape[:3]
        grid = (N, ceil(shape[0] / p), ceil(shape[1] / q))
        self.templates = templates
        self.scalers = nn.Parameter(torch.empty(grid, device=device, dtype=dtype))
        self.register_parameter(
            "bias", nn.Parameter(torch.empty(shape[0], device=device, dtype=dtype)) if bias else None
        )
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw scalers and bias anew, and templates unless they were given to this layer."""
        fan_in = self._dense_shape[1] * prod(self._kernel)
        if self._owns_templates:
            reset_templates(self.templates, fan_in)
        reset_scalers(self.scalers, self.templates, fan_in)
        if self.bias is not None:
            nn.init.uniform_(self.bias, -1 / sqrt(fan_in), 1 / sqrt(fan_in))

    @property
    def dense_shape(self) -> tuple[int, int]:
        """Rows and columns of the dense weight."""
        return self._dense_shape

    @property
    def weight(self) -> Tensor:
        """The dense weight ``(out, in, *kernel)``, differentiable: made anew each time it is read.

        What is written into it, as ``nn.init`` does, does not reach the layer.
        """
        out, inn = self._dense_shape
        with _outside_autocast(self.templates.device.type):  # it has the dtype of its parameters, as nn.Linear's
            return kron_weight(self.templates, self.scalers, out_features=out, in_features=inn, layout=self.layout)

    def _check_input(self, x: object, axis: int, name: str) -> None:
        """The operator takes any width that the scalers' grid may stand for; a layer has one."""
        expected = getattr(self, name)
        if isinstance(x, Tensor) and x.dim() >= -axis and x.shape[axis] != expected:
            raise ValueError(f"x.shape[{axis}] is {x.shape[axis]}, expected {name}={expected}")

    def _to_dense(self, skeleton: Dense) -> Dense:
        """Fill a dense layer without storage from this one; its weight learns if the scalers, which are its own, do."""
        skeleton.register_parameter("weight", nn.Parameter(_alone(self.weight.detach()), self.scalers.requires_grad))
        if self.bias is not None:
            skeleton.register_parameter("bias", nn.Parameter(self.bias.detach().clone(), self.bias.requires_grad))
        return skeleton.train(self.training)

    def _fit(self: Layer, dense: Any, *, fit_templates: bool) -> Layer:
        """Take over the weight as nearly as possible, and all else exactly."""
        weight = dense.weight
        with torch.no_grad():
            check_finite("weight", weight)
            if fit_templates:
                N, p, q = self.templates.shape[:3]
                templates, (scalers,), _ = nearest_kron(weight, N, (p, q), layout=self.layout)
                self.templates.copy_(templates).requires_grad_(weight.requires_grad)
            else:
                check_finite("templates", self.templates)
                scalers = nearest_scalers(weight, self.templates, self.layout)
            self.scalers.copy_(scalers).requires_grad_(weight.requires_grad)
            take_bias(self, dense.bias)
        return self.train(dense.training)

    def _factors_repr(self) -> str:
        line = f"bias={self.bias is not None}, templates={tuple(self.templates.shape)}, layout={self.layout!r}"
        return line if self.role is None else f"{line}, role={self.role!r}"


def _alone(weight: Tensor) -> Tensor:
    """``weight`` in the order and in no more memory than a dense layer's: a ragged one is cut out of a larger tensor."""
    whole = weight.is_contiguous() and weight.untyped_storage().nbytes() == weight.numel() * weight.element_size()
    return weight if whole else weight.clone(memory_format=torch.contiguous_format)


def _outside_autocast(device: str) -> Any:
    return torch.autocast(device, enabled=False) if torch.amp.is_autocast_available(device) else nullcontext()


def take_bias(layer: KronFactors, bias: Tensor | None) -> None:
    """Copy ``bias``, and whether it learns, into ``layer``."""
    if layer.bias is not None and bias is not None:
        with torch.no_grad():
            layer.bias.copy_(bias)
        layer.bias.requires_grad_(bias.requires_grad)


def check_size(name: str, value: Any, expected: str = "an int") -> int:
    """Return ``value`` if it is a positive int, or a number that stands for one, such as NumPy's."""
    number = as_int(value)
    if number is None:
        raise TypeError(f"{name} must be {expected}, got {type(value).__name__}")
    if number < 1:
        raise ValueError(f"{name} must be positive, got {number}")
    return number


def check_template_shape(shape: Sequence[int] | None) -> tuple[int, int] | None:
    """Return ``shape`` as a tuple if it is two positive ints; ``None`` passes."""
    if shape is None:
        return None
    try:
        p, q = (check_size("template_shape", size) for size in shape)
    except (TypeError, ValueError):
        raise ValueError(f"template_shape must be two positive ints (p, q), got {shape!r}") from None
    return p, q


def _check_placement(device: Any, dtype: Any) -> None:
    if dtype is not None and not isinstance(dtype, torch.dtype):
        raise TypeError(f"dtype must be a torch.dtype, got {dtype!r}")
    if device is None:
        return
    try:
        torch.device(device)
    except TypeError:
        raise TypeError(f"device must be a torch.device, its name or its index, got {type(device).__name__}") from None
    except RuntimeError as error:  # what torch knows, in its words
        raise ValueError(f"device must be one that torch knows, got {device!r}: {error}") from error


def _check_given(
    templates: nn.Parameter,
    kernel: tuple[int, ...],
    template_shape: tuple[int, int] | None,
    device: Any,
    dtype: torch.dtype | None,
) -> None:
    check_floating("templates", templates)
    if templates.dim() != 3 + len(kernel) or tuple(templates.shape[3:]) != kernel or 0 in templates.shape:
        expected = ", ".join(["N", "p", "q", *map(str, kernel)])
        raise ValueError(f"templates must have shape ({expected}), none empty, got {tuple(templates.shape)}")
    if template_shape is not None and check_template_shape(template_shape) != tuple(templates.shape[1:3]):
        raise ValueError(f"template_shape is {tuple(template_shape)}, but templates have {tuple(templates.shape[1:3])}")
    if device is not None and torch.empty(0, device=device).device != templates.device:
        raise ValueError(f"device is {device}, but templates are on {templates.device}")
    if dtype is not None and dtype != templates.dtype:
        raise TypeError(f"dtype is {dtype}, but templates have {templates.dtype}")
