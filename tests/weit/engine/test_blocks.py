"""Activation checkpointing: what counts as a block, equal results, less memory."""

from functools import partial

import pytest
import torch
from accelerate.hooks import ModelHook, add_hook_to_module
from torch import nn

import weit
from benchmarks.memory.measure import measure
from tests.weit.engine import scenarios
from tests.weit.toys import SPEC, images, vit
from weit.engine import TrainConfig, train
from weit.engine.blocks import blocks_of, recomputed
from weit.masks import Elastic


def elastic(width: int = 32, depth: int = 8) -> Elastic:
    big, small = vit(width, depth), vit(width // 2, depth)
    bank = weit.kronify(big, SPEC)
    weit.kronify(small, bank)
    return Elastic(big, [small])


def test_blocks() -> None:
    model = vit()
    assert blocks_of(model) == list(model.blocks)
    weit.kronify(model, SPEC)
    assert blocks_of(model) == list(model.blocks)
    pair = elastic()
    assert blocks_of(pair) == [*pair.model.blocks, *pair.skeletons[0].blocks]
    assert not blocks_of(nn.Sequential(nn.Linear(2, 2), nn.ReLU()))


def test_blocks_of_timm_models() -> None:
    timm = pytest.importorskip("timm")
    convnext, resnet = timm.create_model("convnext_atto"), timm.create_model("resnet18")
    assert blocks_of(convnext) == [block for stage in convnext.stages for block in stage.blocks]
    assert blocks_of(resnet) == [block for i in range(1, 5) for block in getattr(resnet, f"layer{i}")]
    deit = timm.create_model("deit_tiny_patch16_224", depth=3)
    weit.kronify(deit, {"templates": 2, "template_shape": (48, 48)})  # query, key and value are a list of layers now
    assert blocks_of(deit) == list(deit.blocks)


@pytest.mark.parametrize("run", [scenarios.dense, scenarios.bank])
def test_results_are_equal_to_the_bit(run) -> None:
    (plain, history), (again, repeated) = run(), run(activation_checkpointing=True)
    assert history == repeated
    for a, b in zip(plain.state_dict().values(), again.state_dict().values(), strict=True):
        assert torch.equal(a, b)


def test_the_same_dropout_both_times_and_nothing_left_behind() -> None:
    def trained(**changes) -> nn.Module:
        torch.manual_seed(0)
        model = vit()
        for block in model.blocks:
            block.mlp = nn.Sequential(block.mlp, nn.Dropout(0.3))
        train(model, images(), TrainConfig(steps=5, batch_size=16, **changes), progress=False)
        assert all("forward" not in vars(module) for module in model.modules())
        return model

    plain, again = trained(), trained(activation_checkpointing=True)
    assert all(torch.equal(a, b) for a, b in zip(plain.parameters(), again.parameters(), strict=True))


class Doubling(ModelHook):
    """A hook of accelerate's, in ``forward``."""

    def post_forward(self, module, output):
        return 2 * output


def test_a_forward_of_the_blocks_own_comes_back() -> None:
    model, inputs = vit(), images()[0]
    block = model.blocks[0]
    add_hook_to_module(block, Doubling())
    expected, own = model(inputs), block.forward
    with recomputed(blocks_of(model)):
        assert torch.equal(model(inputs), expected)
    assert block.forward is own


@pytest.mark.parametrize("size", [None, 0, 1], ids=["dense", "full", "smaller"])
def test_a_step_needs_less_memory(size: int | None) -> None:
    model: nn.Module = vit(32, 8) if size is None else elastic()
    forward = model if size is None else partial(model, size=size)
    inputs, _ = images(256)

    def loss() -> torch.Tensor:
        return forward(inputs).square().mean()

    plain = measure(model, loss)
    with recomputed(blocks_of(model)):
        again = measure(model, loss)
    assert again.peak < 0.5 * plain.peak


def test_a_model_without_blocks_is_refused() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 4))
    with pytest.raises(ValueError, match="activation_checkpointing needs a model with blocks"):
        train(model, images(), TrainConfig(steps=2, batch_size=8, activation_checkpointing=True))
