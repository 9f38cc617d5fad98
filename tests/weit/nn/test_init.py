from math import ceil

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from weit import KronConv2d, KronLinear
from weit.nn.init import default_template_size, nearest_scalers
from weit_kernels import kron_weight


@pytest.mark.parametrize(
    ("sizes", "size"),
    [
        ([768], 48),  # sixteen blocks
        ([192], 16),  # twelve: no smaller than 16
        ([64], 16),
        ([10], 10),  # one block
        ([3], 3),
        ([1000], 50),  # 62.5 wanted
        ([37], 19),  # prime: two ragged blocks
        ([64, 128, 256], 16),
        ([96, 100], 17),  # their divisor 4 is too small: six ragged blocks
    ],
)
def test_default_template_sizes(sizes, size):
    assert default_template_size(sizes) == size


@given(st.lists(st.integers(1, 5000), min_size=1, max_size=4))
def test_default_template_size_is_about_a_sixteenth(sizes):
    size, largest = default_template_size(sizes), max(sizes)
    target = min(largest, max(16, largest / 16))
    assert target / 2 <= size <= 2 * target
    assert ceil(largest / size) * size >= largest


def dense_weights(make, count=40):
    torch.manual_seed(0)
    return torch.stack([make().weight.detach() for _ in range(count)])


MAKERS = {
    "own templates": lambda: KronLinear(96, 64),
    "one template": lambda: KronLinear(96, 64, templates=1),
    "one block": lambda: KronLinear(96, 64, templates=4, template_shape=(64, 96)),
    "interleaved": lambda: KronLinear(96, 64, layout="interleaved"),
    "ragged": lambda: KronLinear(96, 64, template_shape=(20, 20)),
    "given templates of another size": lambda: KronLinear(96, 64, templates=nn.Parameter(7 * torch.randn(5, 16, 16))),
    "given templates of unequal sizes": lambda: KronLinear(
        96, 64, templates=nn.Parameter(torch.randn(5, 16, 16) * torch.arange(1.0, 6)[:, None, None])
    ),
}


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
def test_fresh_weight_has_the_mean_and_variance_of_linear(make):
    weights = dense_weights(make)
    expected = nn.Linear(96, 64).weight.var()
    assert abs(weights.var() / expected - 1) < 0.06
    # Entries of one block share their scalers' signs, so the mean settles slowly.
    assert abs(weights.mean()) < 0.05 * expected.sqrt()


@pytest.mark.parametrize("groups", [1, 4])
def test_fresh_convolution_has_the_mean_and_variance_of_conv(groups):
    weights = dense_weights(lambda: KronConv2d(32, 64, 3, groups=groups))
    expected = nn.Conv2d(32, 64, 3, groups=groups).weight.var()
    assert abs(weights.var() / expected - 1) < 0.06
    assert abs(weights.mean()) < 0.05 * expected.sqrt()


def test_no_block_of_a_fresh_weight_starts_near_zero():
    for count in (1, 2, 8):
        weight = KronLinear(64, 64, templates=count, template_shape=(16, 16)).weight.detach()
        blocks = weight.unflatten(0, (4, 16)).unflatten(2, (4, 16)).square().mean((1, 3)).sqrt() * (3 * 64) ** 0.5
        assert blocks.min() > 0.6
        assert blocks.max() < 1.6


def test_bias_is_drawn_like_that_of_linear():
    torch.manual_seed(0)
    ours, theirs = KronLinear(25, 4000, templates=1).bias, nn.Linear(25, 4000).bias
    assert abs(ours.std() / theirs.std() - 1) < 0.05
    assert ours.abs().max() <= 0.2


def test_starting_values_follow_the_seed():
    torch.manual_seed(5)
    first = KronLinear(24, 24).state_dict()
    torch.manual_seed(5)
    second = KronLinear(24, 24).state_dict()
    assert all(torch.equal(first[k], second[k]) for k in first)


def test_templates_of_zeros_do_not_make_infinite_scalers():
    layer = KronLinear(8, 8, templates=nn.Parameter(torch.zeros(2, 4, 4)))
    assert torch.isfinite(layer.scalers).all()


@pytest.mark.parametrize("layout", ["block", "interleaved"])
@pytest.mark.parametrize("kernel", [(), (3,), (2, 3)])
@pytest.mark.parametrize("sizes", [(8, 15), (7, 13), (15, 30)])
def test_nearest_scalers_leave_a_rest_that_no_template_can_explain(layout, kernel, sizes):
    torch.manual_seed(0)
    templates = torch.randn(3, 4, 5, *kernel, dtype=torch.float64)
    weight = torch.randn(*sizes, *kernel, dtype=torch.float64)
    cut = {"out_features": sizes[0], "in_features": sizes[1], "layout": layout}
    scalers = nearest_scalers(weight, templates, layout).requires_grad_()
    rest = weight - kron_weight(templates, scalers, **cut)
    (slope,) = torch.autograd.grad(rest.square().sum(), scalers)
    assert slope.abs().max() < 1e-10
    exact = kron_weight(templates, scalers.detach(), **cut)
    again = kron_weight(templates, nearest_scalers(exact, templates, layout), **cut)
    torch.testing.assert_close(again, exact)


def test_nearest_scalers_take_repeated_templates():
    templates = torch.randn(1, 4, 4, dtype=torch.float64).repeat(2, 1, 1)
    weight = kron_weight(templates, torch.randn(2, 3, 2, dtype=torch.float64))
    scalers = nearest_scalers(weight, templates, "block")
    torch.testing.assert_close(kron_weight(templates, scalers), weight)
