import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from weit import KronConv2d, KronFusedLinear, KronLinear

CASES = {
    "even": dict(in_features=24, out_features=32, templates=3, template_shape=(8, 6)),
    "interleaved": dict(in_features=24, out_features=32, templates=3, template_shape=(8, 6), layout="interleaved"),
    "ragged": dict(in_features=23, out_features=29, templates=2, template_shape=(8, 6)),
    "ragged interleaved": dict(in_features=23, out_features=29, template_shape=(8, 6), layout="interleaved"),
    "no bias": dict(in_features=24, out_features=32, bias=False),
    "template larger than the layer": dict(in_features=3, out_features=5, template_shape=(8, 8)),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
@pytest.mark.parametrize("path", ["auto", "panel"])
def test_output_and_gradients_are_those_of_the_dense_weight(case, path):
    torch.manual_seed(0)
    layer = KronLinear(**case, path=path, dtype=torch.float64)
    x = torch.randn(2, 5, layer.in_features, dtype=torch.float64, requires_grad=True)
    inputs = [x, *layer.parameters()]
    ours, dense = layer(x), F.linear(x, layer.weight, layer.bias)
    torch.testing.assert_close(ours, dense)
    head = torch.randn_like(dense)
    for a, b in zip(torch.autograd.grad(ours, inputs, head), torch.autograd.grad(dense, inputs, head), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_to_linear_has_the_same_numbers_and_nothing_of_ours(case):
    layer = KronLinear(**case, dtype=torch.float64).eval()
    linear = layer.to_linear()
    assert type(linear) is nn.Linear
    assert (linear.training, linear.in_features, linear.out_features) == (False, layer.in_features, layer.out_features)
    x = torch.randn(7, layer.in_features, dtype=torch.float64)
    torch.testing.assert_close(linear(x), layer(x))
    assert {k: v.shape for k, v in linear.state_dict().items()} == {
        k: v.shape
        for k, v in nn.Linear(layer.in_features, layer.out_features, layer.bias is not None).state_dict().items()
    }
    if layer.bias is not None:
        assert linear.bias.data_ptr() != layer.bias.data_ptr()


@pytest.mark.parametrize(
    ("frozen", "weight_learns", "bias_learns"),
    [(["templates"], True, True), (["scalers"], False, True), (["bias"], True, False)],
)
def test_to_linear_keeps_what_is_frozen(frozen, weight_learns, bias_learns):
    layer = KronLinear(8, 8)
    for name in frozen:
        getattr(layer, name).requires_grad_(False)
    linear = layer.to_linear()
    assert (linear.weight.requires_grad, linear.bias.requires_grad) == (weight_learns, bias_learns)


@given(st.integers(1, 70), st.integers(1, 70), st.integers(1, 9))
def test_any_size_works_with_default_templates(in_features, out_features, count):
    layer = KronLinear(in_features, out_features, templates=count, dtype=torch.float64)
    x = torch.randn(3, in_features, dtype=torch.float64)
    torch.testing.assert_close(layer(x), F.linear(x, layer.weight, layer.bias))
    assert layer.weight.shape == (out_features, in_features)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_dtypes(dtype):
    layer = KronLinear(32, 48, dtype=dtype)
    assert {p.dtype for p in layer.parameters()} == {dtype}
    y = layer(torch.randn(4, 32, dtype=dtype))
    assert y.dtype == dtype
    y.float().square().mean().backward()
    assert all(torch.isfinite(p.grad).all() and p.grad.abs().max() > 0 for p in layer.parameters())
    assert layer.to(torch.float64).to_linear().weight.dtype == torch.float64


def test_state_dict_has_three_entries_and_loads():
    source, target = KronLinear(20, 12), KronLinear(20, 12)
    assert list(source.state_dict()) == ["templates", "scalers", "bias"]
    target.load_state_dict(source.state_dict())
    x = torch.randn(3, 20)
    torch.testing.assert_close(target(x), source(x), rtol=0, atol=0)
    with pytest.raises(RuntimeError, match="size mismatch for templates") as refused:
        KronLinear(20, 12, templates=3).load_state_dict(source.state_dict())
    assert "dense layer" not in str(refused.value)


def test_the_state_of_a_dense_layer_is_refused_with_what_takes_it():
    layer, dense = KronLinear(20, 12), nn.Linear(20, 12)
    with pytest.raises(
        RuntimeError, match=r'(?s)Missing .*"templates".*dense layer, which KronLinear\.from_linear takes'
    ):
        layer.load_state_dict(dense.state_dict())
    assert layer.load_state_dict(dense.state_dict(), strict=False).unexpected_keys == ["weight"]
    with pytest.raises(RuntimeError, match="dense layer, which KronLinear"):
        KronFusedLinear([layer, layer]).load_state_dict(nn.Linear(20, 24).state_dict())


def test_shared_templates_are_one_parameter_and_learn_from_both_layers():
    templates = nn.Parameter(torch.randn(3, 8, 8, dtype=torch.float64))
    a = KronLinear(16, 24, templates=templates)
    b = KronLinear(24, 16, templates=templates)
    assert a.templates is b.templates is templates
    assert a.scalers.dtype == a.bias.dtype == torch.float64
    model = nn.Sequential(a, b)
    x = torch.randn(5, 16, dtype=torch.float64)
    (both,) = torch.autograd.grad(model(x).sum(), templates)
    (alone,) = torch.autograd.grad(b(a(x).detach()).sum(), templates)
    (first,) = torch.autograd.grad(F.linear(a(x), b.weight.detach()).sum(), templates)
    torch.testing.assert_close(both, alone + first)
    assert sum(p.numel() for p in model.parameters()) == 3 * 64 + 2 * 3 * 6 + 24 + 16


def test_reset_parameters_leaves_given_templates_alone():
    templates = nn.Parameter(torch.randn(3, 8, 8))
    layer, before = KronLinear(16, 24, templates=templates), templates.detach().clone()
    scalers = layer.scalers.detach().clone()
    layer.reset_parameters()
    assert torch.equal(templates, before)
    assert not torch.equal(layer.scalers, scalers)
    own = KronLinear(16, 24)
    before = own.templates.detach().clone()
    own.reset_parameters()
    assert not torch.equal(own.templates, before)


@pytest.mark.parametrize("layout", ["block", "interleaved"])
def test_from_linear_is_exact_at_full_rank_and_nearest_below(layout):
    torch.manual_seed(0)
    linear = nn.Linear(18, 20, dtype=torch.float64).eval()
    linear.bias.requires_grad_(False)
    errors = []
    for count in (1, 4, 8, 15):
        layer = KronLinear.from_linear(linear, templates=count, template_shape=(4, 6), layout=layout)
        errors.append(((layer.weight - linear.weight).norm() / linear.weight.norm()).item())
        assert torch.equal(layer.bias, linear.bias)
        assert not layer.training
        assert (layer.scalers.requires_grad, layer.bias.requires_grad) == (True, False)
    assert errors[0] > errors[1] > errors[2] > 0.05
    assert errors[3] < 1e-12


def test_from_linear_projects_onto_given_templates():
    torch.manual_seed(0)
    source = KronLinear(19, 21, templates=3, template_shape=(8, 8), dtype=torch.float64)
    inside = KronLinear.from_linear(source.to_linear(), templates=source.templates)
    assert inside.templates is source.templates
    torch.testing.assert_close(inside.weight[:16, :16], source.weight[:16, :16])  # ragged blocks see zeros beyond
    even = KronLinear.from_linear(nn.Linear(16, 24, dtype=torch.float64), templates=source.templates)
    assert even.scalers.shape == (3, 3, 2)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (dict(in_features=0), ValueError, "in_features must be positive, got 0"),
        (dict(out_features=2.0), TypeError, "out_features must be an int, got float"),
        (dict(templates=0), ValueError, "templates must be positive"),
        (dict(templates=torch.ones(2, 4, 4)), TypeError, "templates must be an int or an nn.Parameter, got Tensor"),
        (dict(templates=nn.Parameter(torch.ones(2, 4))), ValueError, r"templates must have shape \(N, p, q\)"),
        (dict(templates=nn.Parameter(torch.ones(2, 4, 4, 3))), ValueError, r"templates must have shape \(N, p, q\)"),
        (dict(templates=nn.Parameter(torch.ones(0, 4, 4))), ValueError, "none empty"),
        (dict(template_shape=(4,)), ValueError, "template_shape must be two positive ints"),
        (dict(template_shape=(4, 0)), ValueError, "template_shape must be two positive ints"),
        (dict(layout="blocks"), ValueError, "layout must be one of 'block', 'interleaved', got 'blocks'"),
        (dict(path="fast"), ValueError, "path must be one of"),
        (
            dict(dtype=torch.int32),
            TypeError,
            "templates must be float64, float32, bfloat16 or float16, got torch.int32",
        ),
        (dict(dtype="float32"), TypeError, "dtype must be a torch.dtype, got 'float32'"),
        (dict(device="foo"), ValueError, "device must be one that torch knows, got 'foo': Expected one of cpu"),
        (dict(device=3.5), TypeError, "device must be a torch.device, its name or its index, got float"),
        (
            dict(templates=nn.Parameter(torch.ones(2, 4, 4)), device="foo"),
            ValueError,
            "device must be one that torch knows",
        ),
        (
            dict(templates=nn.Parameter(torch.ones(2, 4, 4)), template_shape=(4, 8)),
            ValueError,
            r"template_shape is \(4, 8\), but templates have \(4, 4\)",
        ),
        (
            dict(templates=nn.Parameter(torch.ones(2, 4, 4)), dtype=torch.float64),
            TypeError,
            "dtype is torch.float64, but templates have torch.float32",
        ),
        (
            dict(templates=nn.Parameter(torch.ones(2, 4, 4)), device="meta"),
            ValueError,
            "device is meta, but templates are on cpu",
        ),
    ],
)
def test_bad_arguments_name_themselves(arguments, error, message):
    with pytest.raises(error, match=message):
        KronLinear(**{"in_features": 8, "out_features": 8, **arguments})


def test_bad_inputs_name_themselves():
    layer = KronLinear(8, 8)
    with pytest.raises(ValueError, match=r"x.shape\[-1\] is 9, expected in_features=8"):
        layer(torch.ones(2, 9))
    ragged = KronLinear(10, 8, template_shape=(4, 4))  # whose scalers would serve 9 to 12 features
    for width in (9, 12):
        with pytest.raises(ValueError, match=rf"x.shape\[-1\] is {width}, expected in_features=10"):
            ragged(torch.ones(2, width))
    with pytest.raises(ValueError, match="got a scalar"):
        layer(torch.ones(()))
    with pytest.raises(TypeError, match="x must be float64, float32"):
        layer(torch.ones(2, 8, dtype=torch.int64))


def test_from_linear_refuses_other_layers_and_subclasses_whose_forward_would_be_lost():
    with pytest.raises(TypeError, match=r"linear must be an nn\.Linear itself, got Conv2d"):
        KronLinear.from_linear(nn.Conv2d(3, 3, 1))
    with pytest.raises(TypeError, match=r"linear must be an nn\.Linear itself, got ParametrizedLinear"):
        KronLinear.from_linear(nn.utils.parametrizations.weight_norm(nn.Linear(3, 3)))


@pytest.mark.parametrize("templates", [2, nn.Parameter(torch.randn(2, 4, 4))], ids=["new", "given"])
def test_from_linear_refuses_weights_without_numbers(templates):
    broken, empty = nn.Linear(8, 8), nn.Linear(8, 8, device="meta")
    with torch.no_grad():
        broken.weight[0, 0] = float("nan")
    with pytest.raises(ValueError, match="weight holds NaN or infinity"):
        KronLinear.from_linear(broken, templates=templates)
    templates = templates if isinstance(templates, int) else nn.Parameter(templates.to("meta"))
    with pytest.raises(ValueError, match="weight must hold numbers, but is on the meta device"):
        KronLinear.from_linear(empty, templates=templates)


def test_the_dense_weight_has_the_dtype_of_its_parameters_under_autocast():
    layer = KronLinear(8, 8)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(layer.to_linear().weight, layer.weight)
        assert layer.weight.dtype == torch.float32
        assert layer(torch.ones(2, 8)).dtype == torch.bfloat16
    assert KronLinear(8, 8, device="meta").weight.is_meta


def test_sizes_may_be_numpys():
    layer = KronLinear(np.int64(8), np.int32(6), template_shape=(np.int64(2), 4))
    assert layer(torch.ones(3, 8)).shape == (3, 6)
    assert type(layer.in_features) is int
    dense = layer.to_linear()
    assert torch.equal(
        KronLinear.from_linear(dense, templates=np.int64(8)).weight, KronLinear.from_linear(dense).weight
    )


@pytest.mark.parametrize("sizes", [(32, 32), (64, 10), (100, 7)])
def test_from_linear_with_more_templates_than_the_rank_is_exact(sizes):
    dense = nn.Linear(*sizes, dtype=torch.float64)
    layer = KronLinear.from_linear(dense)
    assert layer.templates.shape[0] == 8
    assert torch.allclose(layer.weight, dense.weight)
    assert layer.templates.flatten(1).norm(dim=1).min() > 0  # those with scalers of zero can still be learned


def fused(bias=True):
    return KronFusedLinear([KronLinear(12, out, bias, templates=2, dtype=torch.float64) for out in (8, 8, 6)])


@pytest.mark.parametrize("bias", [True, False])
def test_fused_layer_is_its_parts_side_by_side(bias):
    layer = fused(bias).eval()
    x = torch.randn(2, 3, 12, dtype=torch.float64)
    torch.testing.assert_close(layer(x), F.linear(x, layer.weight, layer.bias))
    linear = layer.to_linear()
    assert type(linear) is nn.Linear
    assert not linear.training
    assert (linear.in_features, linear.out_features) == (layer.in_features, layer.out_features) == (12, 22)
    torch.testing.assert_close(linear(x), layer(x))
    assert list(layer.state_dict())[:2] == ["parts.0.templates", "parts.0.scalers"]


def test_parts_of_a_fused_layer_keep_one_copy_of_the_input_under_autocast():
    layer = fused().float()
    x, kept = torch.randn(5, 12, requires_grad=True), []

    def keep(tensor):
        if tensor.shape == x.shape:
            kept.append(tensor)
        return tensor

    with torch.autocast("cpu", torch.bfloat16), torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        y = layer(x)
    assert y.dtype == torch.bfloat16
    assert [tensor.dtype for tensor in kept] == [torch.bfloat16] * 3
    assert len({tensor.data_ptr() for tensor in kept}) == 1
    dy = torch.randn_like(y)
    y.backward(dy)
    exact = dy.double() @ layer.weight.double()
    dense = (dy @ layer.weight.bfloat16()).double()
    assert (x.grad - exact).norm() <= 3 * (dense - exact).norm()


def test_fused_layer_refuses_parts_that_do_not_fit():
    with pytest.raises(ValueError, match="at least one"):
        KronFusedLinear([])
    with pytest.raises(TypeError, match="parts must be several KronLinear, got KronLinear"):
        KronFusedLinear(KronLinear(3, 3))
    with pytest.raises(TypeError, match=r"parts\[1\] must be a KronLinear, got KronConv2d"):
        KronFusedLinear([KronLinear(4, 4), KronConv2d(4, 4, 1)])
    with pytest.raises(ValueError, match=r"parts\[1\] must have the in_features and bias"):
        KronFusedLinear([KronLinear(4, 4), KronLinear(4, 4, bias=False)])
