"""The dense weight of Kron layers: what is made of it, and what is not done to it."""

import pytest
import torch
from safetensors.torch import save
from torch import nn

from weit import KronConv1d, KronConv2d, KronConv3d, KronFusedLinear, KronLinear, kronify, materialize

SHAPE = {"templates": 2, "template_shape": (4, 4)}
LAYERS = {
    "even": lambda: KronLinear(8, 8, **SHAPE),
    "ragged rows": lambda: KronLinear(8, 7, **SHAPE),
    "ragged columns": lambda: KronLinear(7, 8, **SHAPE),
    "ragged, interleaved": lambda: KronLinear(7, 6, layout="interleaved", **SHAPE),
    "one ragged row of blocks": lambda: KronLinear(3, 3, **SHAPE),
    "fused": lambda: KronFusedLinear([KronLinear(7, 6, **SHAPE), KronLinear(7, 5, **SHAPE)]),
    "conv1d": lambda: KronConv1d(7, 6, 3, **SHAPE),
    "conv2d": lambda: KronConv2d(7, 6, 3, **SHAPE),
    "conv2d, ragged rows": lambda: KronConv2d(8, 6, 3, **SHAPE),
    "conv3d": lambda: KronConv3d(7, 6, 2, **SHAPE),
}


def check_alone(tensor: torch.Tensor) -> None:
    """That it is in the usual order, and that no larger tensor is kept behind it."""
    assert tensor.is_contiguous()
    assert tensor.untyped_storage().nbytes() == tensor.numel() * tensor.element_size()


@pytest.mark.parametrize("make", LAYERS.values(), ids=LAYERS)
def test_the_weight_of_a_dense_layer_is_a_tensor_of_its_own(make) -> None:
    layer = make()
    dense = materialize(layer)
    assert torch.equal(dense.weight, layer.weight)
    check_alone(dense.weight)


def test_a_materialized_model_can_be_written_and_made_one_vector() -> None:
    model = nn.Sequential(nn.Conv2d(3, 7, 3), nn.ReLU(), nn.Flatten(), nn.Linear(7, 10), nn.Linear(10, 9))
    kronify(model, SHAPE, rules={"0": "conv", "3|4": "fc"})
    for parameter in materialize(model).parameters():
        check_alone(parameter)
    save(dict(model.state_dict()))
    assert nn.utils.parameters_to_vector(model.parameters()).numel() == sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("make", LAYERS.values(), ids=LAYERS)
@pytest.mark.parametrize("kind", [nn.Parameter, torch.Tensor.clone], ids=["parameter", "tensor"])
def test_assigning_the_weight_says_what_to_do_instead(make, kind) -> None:
    layer = make()
    way = "from_conv" if hasattr(layer, "to_conv") else "from_linear"
    with pytest.raises(
        AttributeError, match=rf"weight of a {type(layer).__name__} .* cannot be assigned; .*{way} .*reset_"
    ):
        layer.weight = kind(layer.weight.detach())
    if isinstance(layer, KronFusedLinear):
        with pytest.raises(AttributeError, match="bias of a KronFusedLinear is computed each time it is read"):
            layer.bias = kind(layer.bias.detach())
    else:
        layer.bias = nn.Parameter(torch.zeros_like(layer.bias))
        assert not materialize(layer).bias.any()


def test_properties_that_can_be_set_are_set() -> None:
    class Doubled(nn.Module):
        def forward(self, templates: torch.Tensor) -> torch.Tensor:
            return 2 * templates

        def right_inverse(self, templates: torch.Tensor) -> torch.Tensor:
            return templates / 2

    layer = next(iter(LAYERS.values()))()
    nn.utils.parametrize.register_parametrization(layer, "templates", Doubled())
    layer.templates = torch.ones_like(layer.templates)
    assert torch.equal(layer.templates, torch.ones_like(layer.templates))
