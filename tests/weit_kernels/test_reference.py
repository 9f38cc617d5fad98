"""The definition itself, against ``torch.kron``: what everything else is compared with must not be wrong."""

import pytest
import torch

import weit_kernels
from tests.weit_kernels.cases import CASES, Case, relative_error
from weit_kernels import reference


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_weight_is_the_sum_of_kronecker_products(case: Case) -> None:
    _, T, S, _ = case.operands(torch.float64)
    for layout in ("block", "interleaved"):
        factors = [(s, t) if layout == "block" else (t, s) for s, t in zip(S, T, strict=True)]
        dense = sum(torch.kron(a.contiguous(), b.contiguous()) for a, b in factors)
        dense = dense[: case.out_features, : case.in_features]
        for weight in (reference.kron_weight, weit_kernels.kron_weight):
            got = weight(T, S, out_features=case.out_features, in_features=case.in_features, layout=layout)
            assert got.shape == dense.shape
            assert relative_error(got, dense) < 1e-14


def test_convolution_weight_is_the_product_over_channels_at_each_tap() -> None:
    T, S = torch.randn(3, 2, 4, 3, 5, dtype=torch.float64), torch.randn(3, 6, 2, dtype=torch.float64)
    weight = reference.kron_weight(T, S)
    assert weight.shape == (12, 8, 3, 5)
    taps = torch.stack([reference.kron_weight(T[..., i, j], S) for i in range(3) for j in range(5)], -1)
    assert relative_error(weight.flatten(2), taps) < 1e-15
