"""Shapes, operands and the error bound that all operator tests share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from weit_kernels import cpp, reference

DTYPES = {"fp64": torch.float64, "fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
PATHS = ("templates_first", "scalers_first", "panel")
LAYOUTS = ("block", "interleaved")
needs_extension = pytest.mark.skipif(bool(cpp.why_not()), reason=cpp.why_not() or "the extension is built")


@dataclass(frozen=True)
class Case:
    """Leading axes of ``x``, sizes of the factors, and how many features the last blocks lack."""

    name: str
    lead: tuple[int, ...]
    N: int
    m: int
    n: int
    p: int
    q: int
    cut_out: int = 0
    cut_in: int = 0

    @property
    def out_features(self) -> int:
        return self.m * self.p - self.cut_out

    @property
    def in_features(self) -> int:
        return self.n * self.q - self.cut_in

    def operands(self, dtype: torch.dtype, seed: int = 0) -> list[Tensor]:
        """``x``, ``templates``, ``scalers``, ``bias`` with entries of a trained layer's size."""
        generator = torch.Generator().manual_seed(seed)

        def draw(*shape: int, scale: float = 1.0) -> Tensor:
            return (scale * torch.randn(shape, generator=generator, dtype=torch.float64)).to(dtype)

        return [
            draw(*self.lead, self.in_features),
            draw(self.N, self.p, self.q, scale=(self.n * self.q) ** -0.5),
            draw(self.N, self.m, self.n, scale=self.N**-0.5),
            draw(self.out_features),
        ]


CASES = [
    Case("plain", (9,), 3, 4, 5, 6, 7),
    Case("many_axes", (2, 3, 2), 2, 3, 4, 8, 5),
    Case("no_leading_axes", (), 2, 3, 4, 5, 6),
    Case("one_row", (1,), 4, 5, 3, 8, 8),
    Case("no_rows", (2, 0), 2, 3, 2, 4, 5),
    Case("ragged_out", (7,), 3, 4, 3, 5, 4, cut_out=3),
    Case("ragged_in", (7,), 3, 4, 3, 5, 4, cut_in=2),
    Case("ragged_both", (11,), 5, 3, 4, 7, 9, cut_out=6, cut_in=8),
    Case("one_template", (8,), 1, 4, 4, 3, 5),
    Case("scalar_templates", (6,), 2, 7, 5, 1, 1),
    Case("scalar_scalers", (6,), 2, 1, 1, 7, 5),
    Case("row_templates", (6,), 3, 5, 2, 1, 6),
    Case("column_templates", (6,), 3, 2, 5, 6, 1),
    Case("more_templates_than_blocks", (10,), 12, 2, 3, 4, 3),
    Case("powers_of_two", (64,), 4, 8, 4, 16, 32),
    Case("primes", (13,), 7, 11, 3, 17, 5, cut_out=2, cut_in=1),
]
RAGGED = next(case for case in CASES if case.name == "ragged_both")


def relative_error(value: Tensor, truth: Tensor) -> float:
    """``‖value - truth‖ / ‖truth‖`` in float64."""
    scale = truth.double().norm()
    return float((value.double() - truth.double()).norm() / scale.clamp_min(1e-300))


def assert_as_good_as_dense(
    function: Callable[..., Tensor], dense: Callable[..., Tensor], operands: list[Tensor], slack: float = 2.0
) -> None:
    """Compare a result and all its gradients with float64; the dense path's error in the same dtype is the yardstick.

    Where the dense path happens to be exact, one unit in the last place stands in for its error; float64 is compared
    with itself, to a few units. In float32 the error of a short sum is chance, so the bound is one unit wider.
    """
    exact_inputs = [t.double() for t in operands]
    grad = torch.randn(dense(*exact_inputs).shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    grad = grad.to(operands[0])

    def run(f: Callable[..., Tensor], inputs: list[Tensor]) -> list[Tensor]:
        leaves = [t.detach().clone().requires_grad_() for t in inputs]
        y = f(*leaves)
        return [y.detach(), *torch.autograd.grad(y, leaves, grad.to(y.dtype))]

    truth, ours, theirs = run(dense, exact_inputs), run(function, operands), run(dense, operands)
    eps = torch.finfo(operands[0].dtype).eps
    floor = 8 * eps if operands[0].dtype == torch.float64 else eps
    for name, exact, got, yardstick in zip(("y", "dx", "dT", "dS", "db"), truth, ours, theirs, strict=False):
        assert got.shape == exact.shape
        assert got.dtype == operands[0].dtype
        bound = slack * max(relative_error(yardstick, exact), floor) + (eps if got.dtype == torch.float32 else 0)
        error = relative_error(got, exact)
        assert error <= bound, f"{name}: error {error:.2e}, bound {bound:.2e}"


def reference_linear(case: Case, layout: str) -> Callable[..., Tensor]:
    """The definition for one case, as a function of the four tensors."""
    return lambda x, T, S, b: reference.kron_linear(x, T, S, b, out_features=case.out_features, layout=layout)
