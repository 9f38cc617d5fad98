import pytest
import torch

from tests.weit.rivals.models import hf_vit, timm_resnet, weit_vit
from weit.rivals import RIVALS
from weit.rivals.layers import (
    block_list,
    common_blocks,
    counterparts,
    require_counterparts,
    stack_blocks,
    unstack_blocks,
)


def last(position, have, want, path):
    return have - 1


def test_lists_of_one_length_correspond_one_to_one():
    names = ["a.0.w", "a.1.w", "b.w"]
    assert counterparts(names, names, last) == {name: name for name in names}


def test_lists_of_other_length_are_picked_from():
    asked = []

    def pick(position, have, want, path):
        asked.append((position, have, want, path))
        return position % have

    found = counterparts(["m.a.0.w", "m.a.1.w"], ["m.a.0.w", "m.a.1.w", "m.a.2.w"], pick)
    assert found == {"m.a.0.w": "m.a.0.w", "m.a.1.w": "m.a.1.w", "m.a.2.w": "m.a.0.w"}
    assert asked == [(0, 2, 3, "m.a"), (1, 2, 3, "m.a"), (2, 2, 3, "m.a")]


def test_lists_within_lists():
    theirs = ["s.0.0.w", "s.1.0.w", "s.1.1.w"]
    assert counterparts(theirs, ["s.0.0.w", "s.1.0.w"], last) == {"s.0.0.w": "s.0.0.w", "s.1.0.w": "s.1.1.w"}


def test_layers_take_from_their_like():
    theirs = ["a.0.w", "a.0.shortcut", "a.1.w"]
    found = counterparts(theirs, [*theirs, "a.2.w"], last)
    assert found == {"a.0.w": "a.0.w", "a.0.shortcut": "a.0.shortcut", "a.1.w": "a.1.w", "a.2.w": "a.1.w"}


def test_what_has_no_counterpart_keeps_its_name():
    assert counterparts(["a.0.w"], ["a.0.w", "a.1.v", "c"], last) == {"a.0.w": "a.0.w", "a.1.v": "a.1.v", "c": "c"}


def test_blocks_that_the_source_has_no_like_of_are_told_from_another_family():
    theirs, ours = ["s.0.b.0.w", "s.0.b.0.shortcut"], ["s.0.b.0.w", "s.0.b.0.shortcut", "s.0.b.1.w"]
    with pytest.raises(ValueError, match=r"but s.0.b has 1 in source and 2 in target, and none .* of target's 1"):
        require_counterparts(theirs, counterparts(theirs, ours, last))
    with pytest.raises(ValueError, match=r"must be of the target's family, but has no s.0.b.0.v"):
        require_counterparts(theirs, counterparts(theirs, ["s.0.b.0.w", "s.0.b.0.v"], last))
    with pytest.raises(ValueError, match=r"must be of the target's family, but has no s.0.w"):  # as many, but others
        require_counterparts(["s.0.v", "s.1.w"], counterparts(["s.0.v", "s.1.w"], ["s.0.w", "s.1.w"], last))
    require_counterparts(ours, counterparts(ours, theirs, last))


@pytest.mark.parametrize("rival", ["bert2bert", "weight_selection"])
def test_rivals_say_which_blocks_a_source_has_no_like_of(rival):
    with pytest.raises(ValueError, match="like the target's, but layer1 has 1 in source and 2 in target"):
        RIVALS[rival](timm_resnet(depth=2), timm_resnet(depth=1))


@pytest.mark.parametrize(("family", "blocks"), [(weit_vit, "blocks"), (hf_vit, "vit.layers")])
def test_stacks_come_apart_again(family, blocks):
    model = family(16, 3)
    assert block_list(model) == blocks == common_blocks(model, family(16, 2))
    layers, outside = stack_blocks(model.state_dict(), blocks)
    assert {len(stacked) for stacked in layers.values()} == {3}
    assert len(layers) == 16
    state = unstack_blocks(layers, outside, blocks)
    assert state.keys() == model.state_dict().keys()
    assert all(torch.equal(state[name], tensor) for name, tensor in model.state_dict().items())


def test_unlike_blocks_are_refused():
    with pytest.raises(ValueError, match="the blocks in a must be alike"):
        stack_blocks({"a.0.w": torch.zeros(2), "a.1.w": torch.zeros(3)}, "a")
    with pytest.raises(ValueError, match="the blocks in a must be alike"):
        stack_blocks({"a.0.w": torch.zeros(2), "a.0.v": torch.zeros(2), "a.1.w": torch.zeros(2)}, "a")


def test_other_models_have_no_blocks():
    with pytest.raises(ValueError, match="model must be a vision transformer, got ResNet"):
        block_list(timm_resnet())
