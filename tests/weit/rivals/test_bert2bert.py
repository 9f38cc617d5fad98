"""The defining property: the wider model computes what the narrower one does."""

import pytest
import torch
from torch import nn

from tests.weit.rivals.models import (
    hf_vit,
    images,
    snapshot,
    timm_gated_vit,
    timm_resnet,
    timm_vit,
    unchanged,
    weit_vit,
)
from weit.rivals.bert2bert import initialize_like


@pytest.mark.parametrize(
    ("family", "side", "width"),
    [
        (weit_vit, 4, 32),
        (weit_vit, 4, 48),
        (timm_vit, 32, 32),
        (timm_gated_vit, 32, 32),
        (hf_vit, 32, 32),
        (timm_resnet, 32, 24),
    ],
)
def test_the_function_is_preserved_where_the_width_grows(family, side, width):
    source, x = family(16), images(side)
    target = initialize_like(family(width), source)
    torch.testing.assert_close(target(x), source(x), rtol=1e-10, atol=1e-10)


def test_uneven_hidden_features_preserve_it_too():
    source, x = weit_vit(mlp_ratio=2.0), images()
    target = initialize_like(weit_vit(mlp_ratio=3.5), source)
    torch.testing.assert_close(target(x), source(x), rtol=1e-10, atol=1e-10)


def test_an_uneven_residual_stream_does_not():
    source, x = weit_vit(16), images()
    target = initialize_like(weit_vit(24), source)
    assert (target(x) - source(x)).abs().max() > 1e-3


def test_copies_are_not_the_same_forever():
    """Gradients of copies in equal parts are equal, and so would the copies be after every step."""
    for noise, apart in ((0.0, False), (0.1, True)):
        target = initialize_like(weit_vit(32), weit_vit(16), noise=noise)
        target(images()).square().sum().backward()
        first, second = target.blocks[0].mlp.fc1.weight.grad.chunk(2)
        assert torch.allclose(first, second) != apart


def test_a_deeper_model_stacks_the_blocks():
    source = weit_vit(depth=2)
    target = initialize_like(weit_vit(depth=5), source)
    for i, block in enumerate(target.blocks):
        torch.testing.assert_close(block.state_dict(), source.blocks[i % 2].state_dict(), rtol=0, atol=0)


def test_a_block_with_a_shortcut_goes_to_its_like():
    source = timm_resnet(depth=2)
    target = initialize_like(timm_resnet(depth=3), source)
    assert torch.equal(target.layer2[0].conv1.weight, source.layer2[0].conv1.weight)
    for i in (1, 2):
        assert torch.equal(target.layer2[i].conv1.weight, source.layer2[1].conv1.weight)


@pytest.mark.parametrize("family", [weit_vit, timm_vit])
def test_aki_takes_what_is_new_from_the_block_above(family):
    source = family(16, 2)
    known = initialize_like(family(32, 2), source, variant="aki", noise=0)
    copied = initialize_like(family(32, 2), source, noise=0)
    below, above = (copied.blocks[i].mlp.fc1 for i in (0, 1))
    rows = len(source.blocks[0].mlp.fc1.bias)
    assert torch.equal(known.blocks[0].mlp.fc1.weight[:rows], below.weight[:rows])
    assert torch.equal(known.blocks[0].mlp.fc1.weight[rows:], above.weight[rows:])
    assert torch.equal(known.blocks[0].mlp.fc1.bias[rows:], above.bias[rows:])
    assert torch.equal(known.blocks[1].mlp.fc1.weight, above.weight)
    if family is timm_vit:
        for part in range(3):  # the second half of each of queries, keys and values
            own, below, above = (
                m.blocks[i].attn.qkv.weight.chunk(3)[part] for m, i in ((known, 0), (copied, 0), (copied, 1))
            )
            assert torch.equal(own, torch.cat([below[:16], above[16:]]))
    for name in ("norm1.weight", "mlp.fc2.weight"):
        assert torch.equal(known.blocks[0].get_parameter(name), copied.blocks[0].get_parameter(name))


@pytest.mark.parametrize(
    ("source", "arguments", "message"),
    [
        (None, {}, "source must be a trained model, got None"),
        (weit_vit(64), {}, "source must be no larger than target, but"),
        (weit_vit(16, 4), {}, "source must not be deeper than target, but blocks has 4 in source and 3 in target"),
        (weit_vit(16, num_classes=3), {}, "must differ in width and depth alone, but head.weight is"),
        (weit_vit(16, head_dim=4), {}, r"attention heads must be of one size, got \[4\] in source and \[8\] in target"),
        (nn.Linear(3, 3), {}, "attention heads must be of one size"),
        (weit_vit(16), {"variant": "best"}, "variant must be one of fpi, aki, got 'best'"),
        (weit_vit(16), {"noise": 1.0}, "noise must be from 0 up to but not 1, got 1.0"),
    ],
)
def test_what_does_not_fit_is_refused(source, arguments, message):
    target = weit_vit(32, 3)
    before = snapshot(target)
    with pytest.raises(ValueError, match=message):
        initialize_like(target, source, **arguments)
    assert unchanged(target, before)


def test_aki_is_for_transformers():
    with pytest.raises(ValueError, match="model must be a vision transformer, got ResNet"):
        initialize_like(timm_resnet(), timm_resnet(), variant="aki")
