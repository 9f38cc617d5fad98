import math

import pytest
import torch
from torch import nn

from weit.models import VisionTransformer
from weit.models.vit import Attention


def tiny(**arguments):
    torch.manual_seed(0)
    return VisionTransformer(**{"img_size": 8, "width": 32, "depth": 2, **arguments}).double()


def test_attention_is_softmax_over_keys_head_by_head():
    torch.manual_seed(0)
    attention = Attention(width=6, head_dim=2).double()
    x = torch.randn(2, 5, 6, dtype=torch.float64)
    heads = []
    for head in range(3):
        part = slice(2 * head, 2 * head + 2)
        q, k, v = (project(x)[..., part] for project in (attention.q, attention.k, attention.v))
        heads.append((q @ k.mT / math.sqrt(2)).softmax(-1) @ v)
    torch.testing.assert_close(attention(x), attention.o(torch.cat(heads, -1)))


def test_a_head_depends_on_its_own_features_only():
    attention = Attention(width=32, head_dim=16)
    attention.o = nn.Identity()
    x = torch.randn(1, 4, 32)
    before = attention(x)
    with torch.no_grad():
        attention.q.weight[16:] *= 3
        attention.v.bias[16:] += 1
    after = attention(x)
    torch.testing.assert_close(after[..., :16], before[..., :16], rtol=0, atol=0)
    assert not torch.allclose(after[..., 16:], before[..., 16:])


def test_blocks_are_pre_norm_and_residual():
    model = tiny()
    with torch.no_grad():
        for block in model.blocks:
            for layer in (block.attn.o, block.mlp.fc2):
                layer.weight.zero_()
                layer.bias.zero_()
    images = torch.randn(3, 1, 8, 8, dtype=torch.float64)
    tokens = model.patch_embed(images).flatten(2).mT + model.pos_embed
    torch.testing.assert_close(model(images), model.head(model.norm(tokens).mean(1)))


def test_patches_meet_their_own_positions():
    model = tiny(patch_size=4)
    images = torch.randn(1, 1, 8, 8, dtype=torch.float64)
    swapped = torch.cat([images[..., 4:], images[..., :4]], -1)  # right half to the left
    assert not torch.allclose(model(images), model(swapped))
    with torch.no_grad():
        model.pos_embed[:] = model.pos_embed[:, :1]
    torch.testing.assert_close(model(images), model(swapped))


@pytest.mark.parametrize(("chans", "classes", "patch"), [(1, 10, 2), (3, 7, 4)])
def test_shapes(chans, classes, patch):
    model = VisionTransformer(img_size=8, patch_size=patch, in_chans=chans, num_classes=classes, width=32, depth=1)
    assert model(torch.randn(5, chans, 8, 8)).shape == (5, classes)
    assert model(torch.randn(0, chans, 8, 8)).shape == (0, classes)
    assert model.pos_embed.shape == (1, (8 // patch) ** 2, 32)


def test_starting_values_are_xavier_uniform_with_zero_biases():
    torch.manual_seed(0)
    fc1 = VisionTransformer(width=128, depth=1).blocks[0].mlp.fc1
    bound = math.sqrt(6 / (128 + 512))
    assert fc1.weight.abs().max() <= bound
    assert float(fc1.weight.detach().std()) == pytest.approx(bound / math.sqrt(3), rel=0.02)
    assert not fc1.bias.any()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"width": 0}, "width must be a positive integer, got 0"),
        ({"depth": True}, "depth must be a positive integer, got True"),
        ({"depth": 2.0}, "depth must be a positive integer, got 2.0"),
        ({"width": 40}, "head_dim must divide width, got head_dim=16, width=40"),
        ({"patch_size": 3}, "patch_size must divide img_size, got patch_size=3, img_size=8"),
        ({"mlp_ratio": 0.0}, "mlp_ratio must leave at least one hidden feature"),
    ],
)
def test_impossible_sizes_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        VisionTransformer(**arguments)
