"""Attention heads of one size, wherever weights of one model go into another."""

import pytest
import torch
from torch import nn

import weit
from tests.weit.toys import SPEC, images, vit
from weit.heads import head_dims, require_same_heads
from weit.masks import Elastic
from weit.models import VisionTransformer


def other(width: int = 32, depth: int = 3) -> VisionTransformer:
    """As ``toys.vit``, but heads of 4."""
    return VisionTransformer(img_size=4, num_classes=4, width=width, depth=depth, head_dim=4)


def test_heads_of_other_libraries_have_a_size_too() -> None:
    assert head_dims(nn.MultiheadAttention(32, 4)) == {8}
    attention = pytest.importorskip("diffusers.models.attention_processor").Attention
    assert head_dims(attention(query_dim=32, heads=4, dim_head=16)) == {16}
    assert head_dims(nn.Linear(8, 8)) == set()


def test_a_part_of_a_model_may_lack_some_sizes() -> None:
    require_same_heads(vit(), {4, 8})
    require_same_heads(nn.Linear(8, 8), [8])
    with pytest.raises(ValueError, match=r"must be of one size, got \[\] in source and \[8\] in target"):
        require_same_heads(vit(), [])


@pytest.mark.parametrize("take", ["initialize", "kronify", "pretrain"])
def test_a_bank_refuses_models_of_other_heads(take: str) -> None:
    bank = weit.extract_bank(vit(), SPEC).bank
    model = other()
    before, kinds = model.state_dict(), [type(module) for module in model.modules()]
    before = {name: tensor.clone() for name, tensor in before.items()}
    start = {
        "initialize": lambda: weit.initialize(model, bank, steps=0),
        "kronify": lambda: weit.kronify(model, bank),
        "pretrain": lambda: weit.pretrain(model, images(), {"steps": 1}, bank=bank, progress=False),
    }[take]
    with pytest.raises(ValueError, match=r"heads must be of one size, got \[8\] in bank.source and \[4\] in model"):
        start()
    assert [type(module) for module in model.modules()] == kinds
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_a_bank_refuses_smaller_models_of_other_heads() -> None:
    model = vit()
    with pytest.raises(ValueError, match=r"got \[8\] in model and \[4\] in smaller\[1\]"):
        weit.pretrain(model, images(), {"steps": 1, "spec": SPEC}, smaller=[vit(16), other(16)], progress=False)
    assert isinstance(model.blocks[0].attn.q, nn.Linear)
    bank = weit.kronify(model, SPEC)
    small = other(16)
    weit.kronify(small, bank)  # templates alone know no heads
    with pytest.raises(ValueError, match=r"got \[8\] in model and \[4\] in smaller\[0\]"):
        Elastic(model, [small])


def test_heads_are_kept_where_a_source_is_taken() -> None:
    model = vit()
    bank = weit.kronify(model, SPEC)
    bank.take_source(model)
    assert bank.source is not None
    assert bank.source.head_dims == [8]
    bank.source.head_dims = []  # as a bank of an earlier version has it
    weit.initialize(other(), bank, steps=0)
