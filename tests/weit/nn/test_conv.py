import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from weit import KronConv1d, KronConv2d, KronConv3d, KronLinear

LAYERS = {1: (KronConv1d, nn.Conv1d), 2: (KronConv2d, nn.Conv2d), 3: (KronConv3d, nn.Conv3d)}

# Positional arguments of torch's constructors, then ours by name.
CASES = {
    "plain": (2, (16, 24, 3), {}),
    "pointwise": (2, (16, 24, 1, 1, 0, 1, 1, False), {}),
    "strided": (2, (16, 24, 3, 2, 1), {"template_shape": (8, 4)}),
    "dilated oblong": (2, (16, 24, (3, 2), 1, (2, 1), (2, 1)), {}),
    "ragged": (2, (15, 22, 3, 1, 1), {"template_shape": (8, 4)}),
    "interleaved": (2, (16, 24, 3, 1, 1), {"template_shape": (8, 4), "layout": "interleaved"}),
    "grouped": (2, (16, 24, 3, 1, 1, 1, 2), {"template_shape": (6, 4)}),
    "same": (2, (16, 24, 4, 1, "same"), {}),
    "reflect": (2, (16, 24, 3, 1, (1, 2), 1, 1, True, "reflect"), {}),
    "circular same": (2, (16, 24, 4, 1, "same", 1, 1, True, "circular"), {}),
    "1d": (1, (16, 24, 3, 2, 1), {}),
    "1d replicate": (1, (16, 24, 3, 1, 1, 1, 1, True, "replicate"), {}),
    "3d": (3, (8, 12, (1, 2, 3), 1, 1), {}),
}


def make(dims, args, ours, **more):
    return LAYERS[dims][0](*args, **ours, templates=3, dtype=torch.float64, **more)


def images(layer, dims):
    return torch.randn(2, layer.in_channels, *(7, 6, 5)[:dims], dtype=torch.float64, requires_grad=True)


@pytest.mark.filterwarnings("ignore:Using padding='same'")  # of torch's own layer
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_output_and_gradients_are_those_of_the_dense_convolution(case):
    torch.manual_seed(0)
    dims, args, _ = case
    layer = make(*case)
    dense = LAYERS[dims][1](*args, dtype=torch.float64)
    x = images(layer, dims)
    inputs = [x, *layer.parameters()]
    ours = layer(x)
    parameters = {"weight": layer.weight} | ({} if layer.bias is None else {"bias": layer.bias})
    theirs = torch.func.functional_call(dense, parameters, (x,))
    torch.testing.assert_close(ours, theirs)
    head = torch.randn_like(ours)
    for a, b in zip(torch.autograd.grad(ours, inputs, head), torch.autograd.grad(theirs, inputs, head), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_to_conv_has_the_same_numbers_and_settings(case):
    dims, args, _ = case
    layer = make(*case).eval()
    conv, fresh = layer.to_conv(), LAYERS[dims][1](*args, dtype=torch.float64)
    assert type(conv) is LAYERS[dims][1]
    assert repr(conv) == repr(fresh)
    assert not conv.training
    x = images(layer, dims)
    torch.testing.assert_close(conv(x), layer(x))
    assert [(k, v.shape, v.dtype) for k, v in conv.named_parameters()] == [
        (k, v.shape, v.dtype) for k, v in fresh.named_parameters()
    ]


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_from_conv_keeps_settings_and_is_exact_at_full_rank(case):
    dims, args, ours = case
    conv = LAYERS[dims][1](*args, dtype=torch.float64)
    out, inn = conv.weight.shape[:2]
    shape = (-(-out // 2), -(-inn // 3))
    layout = ours.get("layout", "block")
    layer = LAYERS[dims][0].from_conv(conv, templates=6, template_shape=shape, layout=layout)
    x = images(layer, dims)
    torch.testing.assert_close(layer(x), conv(x))
    assert repr(layer.to_conv()) == repr(conv)


def test_unbatched_input():
    layer = KronConv2d(8, 12, 3, padding=1)
    x = torch.randn(8, 5, 5)
    torch.testing.assert_close(layer(x), layer(x[None])[0])


@pytest.mark.parametrize(("ours", "torchs"), LAYERS.values(), ids=LAYERS)
def test_device_and_dtype_may_be_given_by_position_as_to_torchs_own(ours, torchs):
    args = (4, 6, 3, 2, 1, 1, 2, False, "reflect", "meta", torch.float64)
    layer, dense = ours(*args), torchs(*args)
    assert {(p.device, p.dtype) for p in layer.parameters()} == {(dense.weight.device, dense.weight.dtype)}
    assert repr(layer.to_conv()) == repr(dense)


def test_a_bank_role_serves_convolutions_of_many_sizes():
    templates = nn.Parameter(torch.randn(4, 8, 8, 3, 3))
    layers = [KronConv2d(i, o, 3, templates=templates) for i, o in ((8, 16), (16, 32), (32, 40))]
    x = torch.randn(1, 8, 9, 9)
    for layer in layers:
        x = layer(x)
    assert x.shape == (1, 40, 3, 3)
    x.sum().backward()
    assert templates.grad.shape == templates.shape


@pytest.mark.parametrize(
    ("args", "kwargs", "error", "message"),
    [
        ((0, 8, 3), {}, ValueError, "in_channels must be positive"),
        ((8, 8.0, 3), {}, TypeError, "out_channels must be an int"),
        ((8, 8, 0), {}, ValueError, "kernel_size must be an int or 2 ints, none below 1, got 0"),
        ((8, 8, 1.5), {}, ValueError, "kernel_size must be an int or 2 ints"),
        ((8, 8, (3, 3, 3)), {}, ValueError, "kernel_size must be an int or 2 ints"),
        ((8, 8, 3, 0), {}, ValueError, "stride must be an int or 2 ints, none below 1, got 0"),
        ((8, 8, 3), dict(groups=0), ValueError, "groups must be a positive int, got 0$"),
        ((8, 8, 3), dict(groups=3), ValueError, "groups"),
        ((8, 8, 3), dict(padding="full"), ValueError, "padding"),
        ((8, 8, 3), dict(padding_mode="mirror"), ValueError, "padding_mode must be .* got padding_mode='mirror'$"),
        ((8, 8, 3), dict(stride=2, padding="same"), ValueError, "same"),
        ((8, 8, 3), dict(device="foo"), ValueError, "device must be one that torch knows, got 'foo'"),
        ((8, 8, 3), dict(dtype="float32"), TypeError, "dtype must be a torch.dtype, got 'float32'"),
        ((8, 8, 3), dict(templates=nn.Parameter(torch.ones(2, 4, 4))), ValueError, r"\(N, p, q, 3, 3\)"),
        ((8, 8, 3), dict(templates=nn.Parameter(torch.ones(2, 4, 4, 3, 2))), ValueError, r"\(N, p, q, 3, 3\)"),
    ],
)
def test_bad_arguments_name_themselves(args, kwargs, error, message):
    with pytest.raises(error, match=message):
        KronConv2d(*args, **kwargs)


@pytest.mark.parametrize("channels", [1, 2, 4])
def test_other_channels_are_refused(channels):
    with pytest.raises(ValueError, match=rf"x.shape\[-3\] is {channels}, expected in_channels=3"):
        KronConv2d(3, 8, 3, padding=1, padding_mode="reflect")(torch.ones(2, channels, 6, 6))


@pytest.mark.parametrize(("mode", "least"), [("reflect", 3), ("circular", 2), ("replicate", 1)])
def test_what_cannot_be_padded_is_refused_as_x(mode, least):
    conv = KronConv2d(3, 8, 3, padding=(0, 2), padding_mode=mode)
    with pytest.raises(TypeError, match=r"x must be a torch\.Tensor"):
        conv(None)
    with pytest.raises(ValueError, match="x must have 3 or 4 axes"):
        conv(torch.ones(1, 1, 3, 5, 5))
    with pytest.raises(ValueError, match=r"x has .* positions on spatial axis 1, too few for"):
        conv(torch.ones(1, 3, 3, least - 1))
    dense, x = conv.to_conv(), torch.randn(1, 3, 3, least)
    assert torch.allclose(conv(x), dense(x), atol=1e-5)


def test_numbers_may_be_numpys():
    one, two = np.int64(1), np.int64(2)
    conv = KronConv2d(8, 8, np.int64(3), two, one, one, two)
    assert all(type(n) is int for n in (*conv.kernel_size, *conv.stride, *conv.padding, *conv.dilation, conv.groups))
    assert conv(torch.ones(1, 8, 9, 9)).shape == (1, 8, 5, 5)


class Standardised(nn.Conv2d):
    """Centres its weight at each call, as timm's ``StdConv2d`` does."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self._conv_forward(x, self.weight - self.weight.mean((1, 2, 3), keepdim=True), self.bias)


@pytest.mark.parametrize("conv", [nn.Conv1d(4, 4, 3), Standardised(4, 4, 3)], ids=["other", "subclass"])
def test_from_conv_refuses_other_layers_and_subclasses_whose_forward_would_be_lost(conv: nn.Module) -> None:
    with pytest.raises(TypeError, match=rf"conv must be an nn\.Conv2d itself, got {type(conv).__name__}"):
        KronConv2d.from_conv(conv)


def test_pointwise_convolution_is_the_linear_layer():
    linear = KronLinear(16, 24, templates=3, dtype=torch.float64)
    conv = KronConv2d(16, 24, 1, templates=3, template_shape=linear.templates.shape[1:], dtype=torch.float64)
    conv.load_state_dict(linear.state_dict() | {"templates": linear.templates[..., None, None].detach()})
    x = torch.randn(2, 16, 4, 4, dtype=torch.float64)
    torch.testing.assert_close(conv(x), F.linear(x.movedim(1, -1), linear.weight, linear.bias).movedim(-1, 1))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"groups": 4}, r"divisible by groups, got in_channels=6, out_channels=8, groups=4"),
        (
            {"padding": "same", "stride": 2},
            r"not supported for strided convolutions, got .*stride=\(2, 2\), padding='same'",
        ),
    ],
)
def test_what_torch_refuses_is_said_with_what_was_given(settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        KronConv2d(6, 8, 3, **settings)
