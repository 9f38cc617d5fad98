"""The rivals on policies: each works, or says that it is not for them."""

import pytest
import torch
import torch.nn.functional as F

from tests.weit.rivals.models import _drawn, snapshot, unchanged
from weit.models.policy import MLPPolicy, TransformerPolicy
from weit.rivals import RIVALS


def mlp(width=16, depth=2):
    return _drawn(MLPPolicy(obs_dim=5, act_dim=2, width=width, depth=depth))


def transformer(width=16, depth=2):
    return _drawn(TransformerPolicy(obs_dim=5, act_dim=2, context=3, width=width, depth=depth, head_dim=8))


def windows(count=6):
    return torch.randn(count, 3, 5, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


both = pytest.mark.parametrize("make", [mlp, transformer])


@both
def test_scratch_is_as_constructed(make):
    target = make()
    before = snapshot(target)
    assert unchanged(RIVALS["scratch"](target, None), before)


@both
def test_weight_selection_takes_a_part_of_a_bigger_policy(make):
    source = make()
    target = RIVALS["weight_selection"](make(8, 1), source)
    assert torch.equal(target.embed.weight, source.embed.weight[:, ::2])
    same = RIVALS["weight_selection"](make(16, 2), source)
    assert torch.equal(same(windows()), source(windows()))


@both
def test_bert2bert_doubles_the_width_and_keeps_the_function(make):
    source = make()
    target = RIVALS["bert2bert"](make(32), source)
    torch.testing.assert_close(target(windows()), source(windows()))
    assert torch.isfinite(RIVALS["bert2bert"](make(24, 3), source)(windows())).all()


@both
def test_distillation_comes_nearer_to_the_teacher(make):
    source, target = make().float(), make(8, 1).float()
    x = windows(64).float()
    answers = source(x).detach()
    before = F.mse_loss(target(x), answers)
    settings = dict(data=(x, answers), steps=20, lr=1e-2, batch_size=32, loss=F.mse_loss, distance=F.mse_loss)
    assert F.mse_loss(RIVALS["distillation"](target, source, **settings)(x), answers) < 0.5 * before


def test_ligo_starts_from_duplication():
    source = transformer()
    target = RIVALS["ligo"](transformer(32), source, noise=0.0)
    torch.testing.assert_close(target(windows()), source(windows()))


def test_ligo_learns():
    source, target = transformer().float(), transformer(24, 3).float()
    x = windows(64).float()
    data = (x, source(x).detach())
    RIVALS["ligo"](target, source, data=data, steps=3, batch_size=32, loss=F.mse_loss)
    assert torch.isfinite(target(x)).all()


def test_tleg_keeps_two_blocks_and_makes_any_number():
    source = transformer()
    torch.testing.assert_close(RIVALS["tleg"](transformer(), source)(windows()), source(windows()))
    middle = RIVALS["tleg"](transformer(depth=3), source).blocks[1].mlp.fc1.weight
    ends = [block.mlp.fc1.weight for block in source.blocks]
    torch.testing.assert_close(middle, (ends[0] + ends[1]) / 2)


def test_mimetic_writes_attention_and_leaves_times_alone():
    target = transformer().float()
    before = snapshot(target)
    RIVALS["mimetic"](target, seed=0)
    changed = {name for name, tensor in target.state_dict().items() if not torch.equal(tensor, before[name])}
    assert changed == {f"blocks.{i}.attn.{role}.weight" for i in range(2) for role in "qkvo"}


@pytest.mark.parametrize("rival", ["ligo", "tleg", "mimetic"])
def test_what_is_for_transformers_refuses_the_mlp(rival):
    target = mlp()
    before = snapshot(target)
    with pytest.raises(ValueError, match=r"vision transformer.*MLPPolicy"):
        RIVALS[rival](target, mlp())
    assert unchanged(target, before)


@pytest.mark.parametrize("rival", ["weight_selection", "bert2bert", "ligo", "tleg"])
@pytest.mark.parametrize(("source", "target"), [(mlp, transformer), (transformer, mlp)])
def test_no_policy_is_made_from_one_of_another_family(rival, source, target):
    with pytest.raises(ValueError, match=r"source must be|vision transformer|attention heads must be"):
        RIVALS[rival](target(), source())
