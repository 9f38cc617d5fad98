"""The defining properties: operators at duplication preserve the function, and learning them lowers the loss."""

import pytest
import torch
import torch.nn.functional as F

from tests.weit import toys
from tests.weit.rivals.models import hf_vit, images, snapshot, timm_resnet, timm_vit, unchanged, weit_vit
from weit.engine import TrainConfig, train
from weit.rivals.ligo import Growth, initialize_like


@pytest.mark.parametrize(("family", "side"), [(weit_vit, 4), (timm_vit, 32), (hf_vit, 32)])
def test_duplication_preserves_the_function(family, side):
    source, x = family(16), images(side)
    target = initialize_like(family(32), source, noise=0)
    torch.testing.assert_close(target(x), source(x), rtol=1e-10, atol=1e-10)


def test_the_identity_is_a_copy():
    source = weit_vit()
    target = initialize_like(weit_vit(), source, noise=0)
    torch.testing.assert_close(target.state_dict(), source.state_dict(), rtol=0, atol=0)


def test_weights_are_operators_applied_to_a_mix_of_blocks():
    source, target = weit_vit(16, 2), weit_vit(32, 3)
    growth = Growth(target, source, noise=0.5, seed=1)
    grown = growth.compose()
    B = growth.width
    A = {stream: operator / operator.square().sum(0) for stream, operator in B.items()}
    for layer in range(3):
        for name, out, into in (
            ("attn.q", "query", "residual"),
            ("attn.o", "residual", "value"),
            ("mlp.fc2", "residual", "hidden"),
        ):
            mix = growth.depth[growth.names.index(f"{name}.weight")][layer]
            expected = sum(
                w * B[out] @ block.get_parameter(f"{name}.weight") @ A[into].T
                for w, block in zip(mix, source.blocks, strict=True)
            )
            torch.testing.assert_close(grown[f"blocks.{layer}.{name}.weight"], expected)
    torch.testing.assert_close(grown["head.weight"], source.head.weight @ A["residual"].T)
    torch.testing.assert_close(grown["pos_embed"], source.pos_embed @ B["residual"].T)
    assert torch.equal(grown["head.bias"], source.head.bias)


def test_operators_are_tied_by_stream():
    growth = Growth(weit_vit(32, 3), weit_vit(16, 2), noise=0, seed=0)
    assert {name: tuple(B.shape) for name, B in growth.width.items()} == {
        "residual": (32, 16), "query": (32, 16), "key": (32, 16), "value": (32, 16), "hidden": (128, 64),
    }  # fmt: skip
    assert {tuple(w.shape) for w in growth.depth} == {(3, 2)}
    learned = sum(parameter.numel() for parameter in growth.parameters())
    assert learned == 4 * 32 * 16 + 128 * 64 + 16 * 3 * 2


def test_learning_lowers_the_loss_and_changes_no_source():
    torch.manual_seed(0)
    source = toys.vit(16, 2)
    train(source, toys.images(), TrainConfig(steps=40, batch_size=32, lr=4e-3), progress=False)
    before = snapshot(source)
    inputs, labels = toys.images(200, seed=9)
    losses = []
    for steps in (0, 30):
        target = initialize_like(toys.vit(32, 3), source, data=toys.images(), steps=steps, batch_size=32, noise=0.1)
        with torch.no_grad():
            losses.append(float(F.cross_entropy(target(inputs), labels)))
    assert losses[1] < 0.8 * losses[0]
    assert unchanged(source, before)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (None, "source must be a trained model, got None"),
        (weit_vit(48), "source must be no wider than target, but has 48 residual features, target 32"),
        (weit_vit(16, num_classes=3), "must differ in width and depth alone, but head.weight is"),
        (weit_vit(16, head_dim=4), "attention heads must be of one size"),
        (timm_vit, "source must be of the target's family, but"),
        (timm_resnet, "model must be a vision transformer, got ResNet"),
    ],
)
def test_what_does_not_fit_is_refused(source, message):
    target = weit_vit(32, 3)
    before = snapshot(target)
    with pytest.raises(ValueError, match=message):
        initialize_like(target, source if source is None or isinstance(source, torch.nn.Module) else source())
    assert unchanged(target, before)
