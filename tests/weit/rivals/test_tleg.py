"""The defining property: the blocks lie on a line, the one that is nearest to the source's."""

import pytest
import torch

from tests.weit import toys
from tests.weit.rivals.models import hf_vit, snapshot, timm_resnet, timm_vit, unchanged, weit_vit
from weit.engine import TrainConfig, train
from weit.rivals.layers import block_list, stack_blocks
from weit.rivals.tleg import initialize_like


def layers(model):
    return stack_blocks(model.state_dict(), block_list(model))[0]


@pytest.mark.parametrize("family", [weit_vit, timm_vit, hf_vit])
def test_blocks_lie_on_a_line(family):
    target = initialize_like(family(16, 4), family(16, 3))
    for stacked in layers(target).values():
        steps = stacked.diff(dim=0)
        torch.testing.assert_close(steps, steps[:1].expand_as(steps))


def test_the_line_is_the_nearest():
    source = weit_vit(16, 4)
    fitted = layers(initialize_like(weit_vit(16, 4), source))
    place = torch.linspace(0, 1, 4, dtype=torch.float64)
    for name, stacked in layers(source).items():
        residual = stacked - fitted[name]
        for along in (torch.ones_like(place), place):  # least squares leave nothing along what is fitted
            assert torch.tensordot(along, residual, 1).abs().max() < 1e-10


def test_a_source_that_is_linear_in_depth_is_reproduced_at_any_depth():
    linear = initialize_like(weit_vit(16, 3), weit_vit(16, 4))
    again = initialize_like(weit_vit(16, 3), linear)
    torch.testing.assert_close(again.state_dict(), linear.state_dict())
    deeper = initialize_like(weit_vit(16, 5), linear)
    for ours, theirs in ((0, 0), (2, 1), (4, 2)):
        torch.testing.assert_close(deeper.blocks[ours].state_dict(), linear.blocks[theirs].state_dict())
    single = initialize_like(weit_vit(16, 1), linear)
    torch.testing.assert_close(single.blocks[0].state_dict(), linear.blocks[0].state_dict())


def test_a_single_block_is_repeated():
    source = weit_vit(16, 1)
    target = initialize_like(weit_vit(16, 3), source)
    for block in target.blocks:
        torch.testing.assert_close(block.state_dict(), source.blocks[0].state_dict())


def test_distillation_stays_on_the_line_and_comes_nearer_to_the_source():
    torch.manual_seed(0)
    source = toys.vit(16, 3)
    train(source, toys.images(), TrainConfig(steps=40, batch_size=32, lr=4e-3), progress=False)
    before = snapshot(source)
    inputs, _ = toys.images(200, seed=9)
    gaps = []
    for steps in (0, 20):
        target = initialize_like(toys.vit(16, 3), source, data=toys.images(), steps=steps, batch_size=32)
        for stacked in layers(target).values():
            torch.testing.assert_close(stacked[1] - stacked[0], stacked[2] - stacked[1], atol=1e-6, rtol=1e-4)
        with torch.no_grad():
            gaps.append(float((target(inputs).softmax(-1) - source(inputs).softmax(-1)).abs().mean()))
    assert gaps[1] < gaps[0]
    assert unchanged(source, before)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (lambda: None, "source must be a trained model, got None"),
        (lambda: weit_vit(32), "source and target must differ in depth alone, but pos_embed is"),
        (timm_vit, "source must be of the target's family, but"),
        (hf_vit, "source must be of the target's family, but has its blocks in vit.layers"),
        (timm_resnet, "model must be a vision transformer, got ResNet"),
    ],
)
def test_what_does_not_fit_is_refused(source, message):
    target = weit_vit(16, 3)
    before = snapshot(target)
    with pytest.raises(ValueError, match=message):
        initialize_like(target, source())
    assert unchanged(target, before)
