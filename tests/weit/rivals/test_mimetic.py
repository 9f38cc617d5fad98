"""The defining property: the products of attention's weights have diagonals of the stated sign and size."""

import pytest
import torch
from torch import nn

from tests.weit.rivals.models import hf_vit, snapshot, timm_resnet, timm_vit, unchanged, weit_vit
from weit.models import VisionTransformer
from weit.rivals.mimetic import initialize_like


def off_diagonal(product):
    return product[~torch.eye(len(product), dtype=torch.bool)]


def test_products_are_noise_and_a_diagonal():
    """With one head nothing is cut off: entries are alpha / sqrt(width) apart, around beta on the diagonal."""
    model = initialize_like(VisionTransformer(width=64, depth=2, head_dim=64), seed=3)
    for block in model.blocks:
        attention = block.attn
        query_key = (attention.q.weight.T @ attention.k.weight).detach()
        value_out = (attention.v.weight.T @ attention.o.weight.T).detach()
        for product, alpha, beta in ((query_key, 0.7, 0.7), (value_out, 0.4, -0.4)):
            assert product.diagonal().mean() == pytest.approx(beta, abs=4 * alpha / 64)
            assert product.diagonal().std() == pytest.approx(alpha / 8, rel=0.4)
            assert off_diagonal(product).std() == pytest.approx(alpha / 8, rel=0.1)
            assert off_diagonal(product).mean().abs() < 4 * alpha / 8 / 63


def test_every_head_has_its_own_noise_and_a_positive_diagonal():
    attention = initialize_like(VisionTransformer(width=64, depth=1, head_dim=16)).blocks[0].attn
    products = [
        (q.T @ k).detach() for q, k in zip(attention.q.weight.split(16), attention.k.weight.split(16), strict=True)
    ]
    for product in products:
        assert product.diagonal().mean() > 3 * off_diagonal(product).mean().abs()
        assert torch.linalg.matrix_rank(product) == 16
    assert not torch.allclose(products[0], products[1])


def test_without_noise_values_and_outputs_are_the_negative_identity():
    attention = initialize_like(VisionTransformer(width=32, depth=1), alpha2=0.0).blocks[0].attn
    product = (attention.o.weight @ attention.v.weight).detach()
    torch.testing.assert_close(product, -0.4 * torch.eye(32), rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("family", "positions"), [(weit_vit, "pos_embed"), (timm_vit, "pos_embed"), (hf_vit, "position_embeddings")]
)
def test_nothing_else_is_touched(family, positions):
    model = family(16)
    before = snapshot(model)
    assert initialize_like(model) is model
    changed = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
    attention = ("q.weight", "k.weight", "v.weight", "o.weight", "qkv.weight", "proj.weight")
    attention += tuple(f"{role}_proj.weight" for role in "qkvo")
    assert all(name.endswith((*attention, positions)) and "patch" not in name for name in changed)
    assert len(changed) == 1 + 2 * (2 if family is timm_vit else 4)


@pytest.mark.parametrize("no_embed_class", [False, True])
def test_register_tokens_are_no_patches(no_embed_class):
    timm = pytest.importorskip("timm")
    sizes = {"img_size": 32, "patch_size": 16, "embed_dim": 16, "depth": 1, "num_heads": 2}
    model = timm.models.VisionTransformer(**sizes, reg_tokens=4, no_embed_class=no_embed_class)
    before = model.pos_embed.detach().clone()
    initialize_like(model)
    prefix = 0 if no_embed_class else 5
    assert model.pos_embed.shape[1] == prefix + 4
    assert torch.equal(model.pos_embed[:, :prefix], before[:, :prefix])
    grid = model.pos_embed[0, prefix:].detach().view(2, 2, 4, 4)
    torch.testing.assert_close(grid[0, 1, 0, 0], torch.tensor(1.0).sin())


def test_positions_are_sinusoids_of_row_and_column():
    model = initialize_like(timm_vit(16))
    position = model.pos_embed[0].detach()
    assert not torch.allclose(position[0].abs().max(), torch.tensor(1.0, dtype=position.dtype))  # the class token's
    grid = position[1:].view(2, 2, 4, 4)  # row, column, (sin x, cos x, sin y, cos y), rates
    torch.testing.assert_close(grid[0, 1, 0, 0], torch.tensor(1.0).sin().to(grid))
    torch.testing.assert_close(grid[:, :, 0].square() + grid[:, :, 1].square(), torch.ones_like(grid[:, :, 0]))
    assert torch.equal(grid[0, :, :2], grid[1, :, :2])
    assert torch.equal(grid[:, 0, 2:], grid[:, 1, 2:])


def test_the_same_seed_draws_the_same():
    first, again, other = (initialize_like(weit_vit(), seed=seed).blocks[1].attn.k.weight for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (timm_resnet, "is for the attention of vision transformers, not ResNet"),
        (lambda: nn.Sequential(nn.Linear(4, 4)), "no built-in rules know"),
        (lambda: weit_vit(18, head_dim=9), "positions must be on a square grid, of a width that 4 divides"),
    ],
)
def test_other_models_are_refused(model, message):
    target = model()
    before = snapshot(target)
    with pytest.raises(ValueError, match=message):
        initialize_like(target)
    assert unchanged(target, before)
