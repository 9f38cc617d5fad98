"""Linear layers whose weight is a sum of Kronecker products of templates and scalers."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, cast

import torch
from torch import Tensor, nn

from weit.nn.factors import ComputesWeight, KronFactors, check_size
from weit_kernels import kron_linear
from weit_kernels.ops import autocast


class KronLinear(KronFactors):
    """``y = x Wᵀ + b`` with ``W = Σ_t kron(scalers[t], templates[t])``: a drop-in for ``nn.Linear``.

    Args:
        in_features, out_features, bias: as in ``nn.Linear``.
        templates: how many templates to make, or a parameter ``(N, p, q)`` to share with other layers.
        template_shape: ``(p, q)``; by default about 16 × 16 blocks (see ``weit.nn.init``). Need not divide
            the sizes.
        layout: ``"block"``, or ``"interleaved"``: ``W = Σ_t kron(templates[t], scalers[t])``.
        path: how to compute it, see ``weit_kernels.plan``.
        device, dtype: as in ``nn.Linear``, also in what torch says of a device that this machine lacks; those of
            ``templates`` if that is a parameter.

    Shape:
        ``(..., in_features)`` → ``(..., out_features)``.

    Attributes:
        templates: parameter ``(N, p, q)``.
        scalers: parameter ``(N, m, n)``, ``m = ceil(out_features / p)``, ``n = ceil(in_features / q)``.
        bias: parameter ``(out_features,)`` or ``None``.
        weight: the dense weight ``(out_features, in_features)``, differentiable. It is made anew each time it is read, so
            that it cannot be assigned, and what is written into it, as ``nn.init`` does, does not reach the layer:
            ``from_linear`` takes a dense layer's numbers, ``reset_parameters`` draws new ones.

    A fresh layer has the distribution of ``nn.Linear``'s weight in mean and variance, and its bias.

    Raises:
        TypeError, ValueError: an argument of the wrong type, size, dtype or device.

    Source: the weight templates and scalers of WeiT (arXiv 2604.14769) and WAVE (arXiv 2406.17503).
    """

    in_features: int
    out_features: int

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        *,
        templates: int | nn.Parameter = 8,
        template_shape: tuple[int, int] | None = None,
        layout: str = "block",
        path: str = "auto",
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.in_features = check_size("in_features", in_features)
        self.out_features = check_size("out_features", out_features)
        shape = (self.out_features, self.in_features)
        self._make_factors(shape, (), bias, templates, template_shape, layout, path, device, dtype)

    def forward(self, x: Tensor) -> Tensor:
        self._check_input(x, -1, "in_features")
        return kron_linear(
            x,
            self.templates,
            self.scalers,
            self.bias,
            out_features=self.out_features,
            layout=self.layout,
            path=self.path,
        )

    def to_linear(self) -> nn.Linear:
        """The ``nn.Linear`` with the same weight and bias, on the same device, as trainable."""
        return self._to_dense(nn.Linear(self.in_features, self.out_features, self.bias is not None, device="meta"))

    @classmethod
    def from_linear(
        cls,
        linear: nn.Linear,
        *,
        templates: int | nn.Parameter = 8,
        template_shape: tuple[int, int] | None = None,
        layout: str = "block",
        path: str = "auto",
    ) -> KronLinear:
        """The layer nearest to ``linear`` in Frobenius norm, with new templates or with the given ones.

        For new templates, a weight that they do not divide counts as padded with zeros.

        Raises:
            TypeError: ``linear`` is no ``nn.Linear``, or of a subclass, which may compute something else.
            ValueError: as the constructor; NaN or infinity in the weight.
        """
        if type(linear) is not nn.Linear:
            raise TypeError(f"linear must be an nn.Linear itself, got {type(linear).__name__}")
        layer = cls(
            linear.in_features,
            linear.out_features,
            linear.bias is not None,
            templates=templates,
            template_shape=template_shape,
            layout=layout,
            path=path,
            device=linear.weight.device,
            dtype=linear.weight.dtype,
        )
        return layer._fit(linear, fit_templates=not isinstance(templates, nn.Parameter))

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}, {self._factors_repr()}"


class KronFusedLinear(ComputesWeight):
    """Several ``KronLinear`` side by side in place of one ``nn.Linear``, such as query, key and value.

    Each part has templates of its own role; their outputs are concatenated.

    Args:
        parts: layers of the same ``in_features``, all with a bias or all without.

    Shape:
        ``(..., in_features)`` → ``(..., out_features)``, ``out_features`` being the sum over the parts.

    Raises:
        TypeError: a part is no ``KronLinear``. ValueError: no parts, or parts that do not fit together.
    """

    def __init__(self, parts: Iterable[KronLinear]) -> None:
        super().__init__()
        if not isinstance(parts, Iterable):
            raise TypeError(f"parts must be several KronLinear, got {type(parts).__name__}")
        parts = list(parts)
        if not parts:
            raise ValueError("parts must hold at least one KronLinear, got none")
        for i, part in enumerate(parts):
            if not isinstance(part, KronLinear):
                raise TypeError(f"parts[{i}] must be a KronLinear, got {type(part).__name__}")
            if (part.in_features, part.bias is None) != (parts[0].in_features, parts[0].bias is None):
                raise ValueError(f"parts[{i}] must have the in_features and bias of parts[0]: {part} beside {parts[0]}")
        self.parts = nn.ModuleList(parts)
        self.in_features: int = parts[0].in_features
        self.out_features: int = sum(part.out_features for part in parts)

    def forward(self, x: Tensor) -> Tensor:
        # Once: each part would make and keep a copy of its own. Their gradients are added up in that dtype.
        x, _ = autocast(x, None)
        return torch.cat([part(x) for part in self._layers()], -1)

    @property
    def weight(self) -> Tensor:
        """The dense weight ``(out_features, in_features)``, differentiable; made anew on access, as ``KronLinear``'s."""
        return torch.cat([part.weight for part in self._layers()])

    @property
    def bias(self) -> Tensor | None:
        """``(out_features,)``, computed on access, or ``None``."""
        biases: list[Tensor] = [part.bias for part in self._layers() if part.bias is not None]
        return torch.cat(biases) if biases else None

    def to_linear(self) -> nn.Linear:
        """One ``nn.Linear`` with the same weight and bias, on the same device, as trainable."""
        dense = [part.to_linear() for part in self._layers()]
        linear = nn.Linear(self.in_features, self.out_features, dense[0].bias is not None, device="meta")
        for name, _ in list(linear.named_parameters()):
            pieces = [getattr(part, name) for part in dense]
            requires_grad = any(piece.requires_grad for piece in pieces)
            linear.register_parameter(name, nn.Parameter(torch.cat(pieces).detach(), requires_grad))
        return linear.train(self.training)

    def _layers(self) -> list[KronLinear]:
        return cast(list[KronLinear], list(self.parts))
