"""``nearest_kron``: the optimum, its error, and what it refuses."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.weit_kernels.cases import LAYOUTS, relative_error
from weit_kernels import kron_weight, nearest_kron


def rebuilt(templates: torch.Tensor, scalers: torch.Tensor, like: torch.Tensor, layout: str) -> torch.Tensor:
    return kron_weight(templates, scalers, out_features=like.shape[0], in_features=like.shape[1], layout=layout)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("size", [(12, 20), (11, 18)], ids=["even", "ragged"])
def test_exact_at_full_rank_and_monotone_before(size: tuple[int, int], layout: str) -> None:
    weight = torch.randn(size, dtype=torch.float64)
    errors = []
    for N in range(1, 13):
        templates, (scalers,), error = nearest_kron(weight, N, (4, 5), layout=layout)
        assert templates.shape == (N, 4, 5)
        assert scalers.shape == (N, 3, 4)
        assert error == pytest.approx(relative_error(rebuilt(templates, scalers, weight, layout), weight), abs=1e-12)
        errors.append(error)
    assert errors == sorted(errors, reverse=True)
    assert errors[0] > 0.1
    assert errors[-1] < 1e-14


@pytest.mark.parametrize("layout", LAYOUTS)
def test_recovers_layers_that_share_templates(layout: str) -> None:
    templates = torch.randn(3, 4, 5, 3, 3, dtype=torch.float64)
    scalers = [torch.randn(3, m, n, dtype=torch.float64) for m, n in ((2, 3), (6, 1), (4, 4))]
    weights = [kron_weight(templates, s, layout=layout) for s in scalers]
    found, coefficients, error = nearest_kron(weights, 3, (4, 5), layout=layout)
    assert error < 1e-14
    for weight, s in zip(weights, coefficients, strict=True):
        assert relative_error(rebuilt(found, s, weight, layout), weight) < 1e-13


def test_no_other_fit_is_closer() -> None:
    """Gradient descent from the optimum finds nothing better: the gradient vanishes there and noise only hurts."""
    weight = torch.randn(12, 20, dtype=torch.float64)
    templates, (scalers,), error = nearest_kron(weight, 4, (4, 5))
    leaves = [templates.requires_grad_(), scalers.requires_grad_()]
    loss = (kron_weight(*leaves) - weight).square().sum()
    for grad in torch.autograd.grad(loss, leaves):
        assert grad.abs().max() < 1e-9
    generator = torch.Generator().manual_seed(0)
    for _ in range(5):
        noisy = [t.detach() + 0.05 * torch.randn(t.shape, generator=generator, dtype=t.dtype) for t in leaves]
        assert relative_error(kron_weight(*noisy), weight) > error


def test_templates_look_like_the_weights_and_keep_their_dtype() -> None:
    weight = 0.02 * torch.randn(64, 64)
    templates, (scalers,), _ = nearest_kron(weight, 5, (16, 16))
    assert templates.dtype == scalers.dtype == torch.float32
    rms = templates.square().mean((1, 2)).sqrt()
    assert torch.allclose(rms, weight.square().mean().sqrt().expand(5), rtol=1e-5)


@given(out=st.integers(1, 12), inn=st.integers(1, 12), p=st.integers(1, 5), q=st.integers(1, 5), data=st.data())
def test_any_template_shape(out: int, inn: int, p: int, q: int, data: st.DataObject) -> None:
    weight = torch.randn(out, inn, dtype=torch.float64)
    m, n = -(-out // p), -(-inn // q)
    full = min(m * n, p * q)
    N = data.draw(st.integers(1, full))
    templates, (scalers,), error = nearest_kron(weight, N, (p, q))
    assert relative_error(rebuilt(templates, scalers, weight, "block"), weight) == pytest.approx(error, abs=1e-12)
    if N == full:
        assert error < 1e-13


def test_templates_beyond_the_full_rank_repeat_the_others_with_scalers_of_zero() -> None:
    weight = torch.randn(8, 10, dtype=torch.float64)
    templates, (scalers,), error = nearest_kron(weight, 7, (4, 5))  # of rank 4
    assert error < 1e-12
    assert torch.equal(templates[4:], templates[:3])
    assert not scalers[4:].any()
    assert relative_error(rebuilt(templates, scalers, weight, "block"), weight) < 1e-12


def test_zero_weight_is_reproduced() -> None:
    templates, (scalers,), error = nearest_kron(torch.zeros(4, 4), 1, (2, 2))
    assert error == 0
    assert torch.equal(kron_weight(templates, scalers), torch.zeros(4, 4))


def test_sizes_may_be_numpys() -> None:
    weight = torch.randn(8, 6)
    numpys, plain = (nearest_kron(weight, N, (N, 3)) for N in (np.int64(2), 2))
    assert torch.equal(numpys[0], plain[0])


W = torch.ones(12, 20)


@pytest.mark.parametrize(
    ("args", "kwargs", "error", "message"),
    [
        (([], 1, (4, 5)), {}, ValueError, "weights must hold at least one"),
        ((W.int(), 1, (4, 5)), {}, TypeError, r"weights\[0\] must be float64"),
        (([W, "w"], 1, (4, 5)), {}, TypeError, r"weights\[1\] must be a torch.Tensor, got str"),
        ((W[0], 1, (4, 5)), {}, ValueError, r"weights\[0\] must have shape"),
        (([W, W.double()], 1, (4, 5)), {}, ValueError, r"weights\[1\] must share kernel, dtype and device"),
        (([W, W[..., None]], 1, (4, 5)), {}, ValueError, r"weights\[1\] must share kernel"),
        ((W * float("nan"), 1, (4, 5)), {}, ValueError, r"weights\[0\] holds NaN"),
        ((W, 0, (4, 5)), {}, ValueError, "N must be a positive int, got 0"),
        ((W, 1, (4, 5, 3)), {}, ValueError, r"template_shape must be two positive ints \(p, q\)"),
        ((W, 1, (0, 5)), {}, ValueError, "template_shape must be all positive"),
        ((W, 1, (True, 5)), {}, TypeError, "template_shape must be a sequence of ints"),
        ((W, 1, 4), {}, TypeError, "template_shape must be a sequence of ints, got 4"),
        ((None, 1, (4, 5)), {}, TypeError, "weights must be a tensor or a sequence of tensors, got NoneType"),
        ((W.to("meta"), 1, (4, 5)), {}, ValueError, r"weights\[0\] must hold numbers, but is on the meta device"),
        ((W, 1, (4, 5)), {"layout": "x"}, ValueError, "layout must be one of"),
    ],
)
def test_bad_arguments(args: tuple, kwargs: dict, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        nearest_kron(*args, **kwargs)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_error_is_that_of_what_is_returned(dtype: torch.dtype) -> None:
    weight = kron_weight(torch.randn(3, 4, 5), torch.randn(3, 3, 4)).to(dtype)
    for N in (2, 12):
        templates, (scalers,), error = nearest_kron(weight, N, (4, 5))
        found = kron_weight(templates.double(), scalers.double())
        assert error == pytest.approx(relative_error(found, weight.double()), rel=1e-6)
        assert error > torch.finfo(dtype).eps / 100


@pytest.mark.parametrize("size", [1e-200, 1e200])
def test_squares_of_weights_need_not_be_numbers(size: float) -> None:
    weight = torch.randn(12, 20, dtype=torch.float64)
    _, _, expected = nearest_kron(weight, 4, (4, 5))
    templates, (scalers,), error = nearest_kron(size * weight, 4, (4, 5))
    assert error == pytest.approx(expected)
    assert relative_error(kron_weight(templates / size, scalers), weight) == pytest.approx(expected)


def test_weights_need_not_be_on_the_default_device() -> None:
    weight = torch.randn(12, 20)
    with torch.device("meta"):
        assert 0 < nearest_kron(weight, 4, (4, 5))[2] < 1
