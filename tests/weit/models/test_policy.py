import pytest
import torch
from torch import nn

import weit
from weit.masks import Elastic
from weit.models import VisionTransformer
from weit.models.policy import MLPPolicy, TransformerPolicy
from weit.models.vit import Attention
from weit.rules import FAMILIES, find_rules

POLICIES = {"mlp": MLPPolicy, "transformer": TransformerPolicy}
SPEC = {"templates": 4, "template_shape": (8, 8)}


def policy(kind, width=16, depth=2, **sizes):
    torch.manual_seed(0)
    heads = {"head_dim": 8, "context": 4} if kind == "transformer" else {}
    return POLICIES[kind](obs_dim=5, act_dim=2, width=width, depth=depth, **heads, **sizes).double()


def windows(count=6):
    return torch.randn(count, 4, 5, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


def test_shapes():
    for kind in POLICIES:
        assert policy(kind)(windows()).shape == (6, 2)
        assert policy(kind)(windows(0)).shape == (0, 2)


def test_the_mlp_acts_on_the_last_observation():
    model = policy("mlp")
    assert torch.equal(model(windows()), model(windows()[:, -1]))


def test_the_transformer_acts_on_all_observations_in_their_order():
    model, x = policy("transformer"), windows()
    for position in range(4):
        other = x.clone()
        other[:, position] += 1
        assert not torch.allclose(model(other), model(x))
    assert not torch.allclose(model(x[:, [1, 0, 2, 3]]), model(x))


def test_no_position_sees_a_later_one():
    attention = Attention(16, 8, causal=True).double()
    x = torch.randn(2, 4, 16, dtype=torch.float64)
    for position in range(1, 4):
        other = x.clone()
        other[:, position:] += 1
        torch.testing.assert_close(attention(other)[:, :position], attention(x)[:, :position])
        assert not torch.allclose(attention(other)[:, position:], attention(x)[:, position:])


@pytest.mark.parametrize("kind", POLICIES)
def test_blocks_are_pre_norm_and_residual(kind):
    model = policy(kind)
    with torch.no_grad():
        for block in model.blocks:
            for layer in [block.fc2] if kind == "mlp" else [block.attn.o, block.mlp.fc2]:
                layer.weight.zero_()
                layer.bias.zero_()
    x = model.embed(windows())
    x = x if kind == "mlp" else x + model.time_embed
    torch.testing.assert_close(model(windows()), model.head(model.norm(x[:, -1])))


@pytest.mark.parametrize("kind", POLICIES)
def test_example_inputs_are_what_it_takes(kind):
    model = policy(kind)
    assert model(*model.example_inputs()).shape == (1, 2)
    with torch.device("meta"):
        model = POLICIES[kind]()
        assert model(*model.example_inputs()).is_meta


@pytest.mark.parametrize("kind", POLICIES)
def test_starting_values_are_drawn_with_zero_biases(kind):
    for name, parameter in policy(kind).named_parameters():
        if name.endswith("bias"):
            assert not parameter.any()
        else:
            assert parameter.all()


@pytest.mark.parametrize(
    ("kind", "arguments", "message"),
    [
        ("mlp", {"width": 0}, "width must be a positive integer, got 0"),
        ("mlp", {"obs_dim": 2.0}, "obs_dim must be a positive integer, got 2.0"),
        ("mlp", {"mlp_ratio": 0.0}, "mlp_ratio must leave at least one hidden feature"),
        ("transformer", {"context": 0}, "context must be a positive integer, got 0"),
        ("transformer", {"width": 40}, "head_dim must divide width, got head_dim=16, width=40"),
    ],
)
def test_impossible_sizes_are_refused(kind, arguments, message):
    with pytest.raises(ValueError, match=message):
        POLICIES[kind](**arguments)


@pytest.mark.parametrize(
    ("kind", "shape", "message"),
    [
        ("mlp", (3, 6), r"observations must be of shape \(B, 5\), got \(3, 6\)"),
        ("mlp", (5,), r"observations must be of shape \(B, 5\), got \(5,\)"),
        ("transformer", (3, 5), r"observations must be of shape \(B, 4, 5\), got \(3, 5\)"),
        ("transformer", (3, 3, 5), r"observations must be of shape \(B, 4, 5\), got \(3, 3, 5\)"),
    ],
)
def test_observations_of_another_shape_are_refused(kind, shape, message):
    with pytest.raises(ValueError, match=message):
        policy(kind)(torch.zeros(shape, dtype=torch.float64))


def test_families_are_told_apart():
    rules = {family.name: family.rules for family in FAMILIES}
    assert find_rules(policy("mlp")) is rules["weit.models MLP policy"]
    assert find_rules(policy("transformer")) is rules["weit.models transformer policy"]
    assert find_rules(VisionTransformer(width=16, depth=1)) is rules["weit.models ViT"]
    assert find_rules(nn.ModuleDict({"actor": policy("mlp")})) is rules["weit.models MLP policy"]


@pytest.mark.parametrize(("kind", "roles"), [("mlp", {"fc1", "fc2"}), ("transformer", {*"qkvo", "fc1", "fc2"})])
def test_kronify_and_materialize(kind, roles):
    model = policy(kind)
    shapes = {name: tensor.shape for name, tensor in model.state_dict().items()}
    bank = weit.kronify(model, SPEC)
    assert set(bank.roles) == roles
    expected = model(windows())
    weit.materialize(model)
    assert {name: tensor.shape for name, tensor in model.state_dict().items()} == shapes
    torch.testing.assert_close(model(windows()), expected)


@pytest.mark.parametrize("kind", POLICIES)
def test_a_smaller_policy_is_a_prefix_of_a_bigger_one(kind):
    big, small = policy(kind), policy(kind, width=8, depth=1)
    bank = weit.kronify(big, SPEC)
    weit.kronify(small, bank)
    elastic = Elastic(big, [small])
    first = elastic(windows(), size=1)
    with torch.no_grad():
        for name, parameter in big.blocks[1].named_parameters():
            if not name.endswith("templates"):
                parameter.add_(1)
    assert torch.equal(elastic(windows(), size=1), first)  # the second block is none of it
    first.square().sum().backward()
    assert big.embed.weight.grad[:, :8].any()
    assert not big.embed.weight.grad[:, 8:].any()


@pytest.mark.parametrize("kind", POLICIES)
def test_a_bank_gives_the_policy_it_was_pretrained_as_and_others(kind):
    model = policy(kind).float()
    x = windows(64).float()
    data = (x, x[:, -1, :2])
    config = weit.PretrainConfig(steps=5, batch_size=32, spec=SPEC)
    loss = nn.functional.mse_loss
    bank = weit.pretrain(model, data, config, smaller=[policy(kind, 8, 1).float()], loss=loss, progress=False)
    same = weit.initialize(policy(kind).float(), bank, steps=0)
    torch.testing.assert_close(same(x), model(x))
    for width, depth in ((8, 1), (24, 3)):
        other = policy(kind, width, depth).float()
        before = other(x)
        after = weit.initialize(other, bank, data, steps=3, loss=loss)(x)
        assert torch.isfinite(after).all()
        assert not torch.allclose(after, before)
