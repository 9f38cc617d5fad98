"""Laying out scalers."""

import copy

import pytest
import torch
from torch import nn

import weit
from tests.weit.toys import SPEC, accuracy, images, pretrained, vit
from weit.nn.factors import KronFactors
from weit.nn.init import nearest_scalers
from weit.scalers import lay_out, map_depth, resize


@pytest.fixture(scope="module")
def bank() -> weit.TemplateBank:
    return pretrained()


def test_resize_cuts_and_repeats() -> None:
    x = torch.arange(6.0).view(2, 3)
    assert torch.equal(resize(x, (1, 2)), x[:1, :2])
    assert torch.equal(resize(x, (5, 4)), x[[0, 1, 0, 1, 0]][:, [0, 1, 2, 0]])
    assert resize(x, (2, 3)) is x
    with pytest.raises(ValueError, match="shape must have 2 axes"):
        resize(x, (6,))


def _blocks(*indices: int) -> list[str]:
    return [f"blocks.{i}.w" for i in indices] + ["head.w"]


@pytest.mark.parametrize(
    ("source", "target", "depth", "expected"),
    [
        (4, 4, "prefix", [0, 1, 2, 3]),
        (6, 3, "prefix", [0, 1, 2]),
        (6, 3, "nearest", [0, 2, 5]),
        (3, 6, "prefix", [0, 0, 1, 1, 2, 2]),
        (3, 5, "nearest", [0, 0, 1, 1, 2]),
        (3, 1, "nearest", [0]),
    ],
)
def test_layers_correspond_by_depth(source: int, target: int, depth: str, expected: list[int]) -> None:
    pairs = map_depth(_blocks(*range(source)), _blocks(*range(target)), depth)
    assert [pairs[f"blocks.{i}.w"] for i in range(target)] == [f"blocks.{i}.w" for i in expected]
    assert pairs["head.w"] == "head.w"


def test_a_block_with_a_shortcut_stands_for_its_like() -> None:
    def stage(count: int) -> list[str]:
        return ["layer.0.conv", "layer.0.shortcut", *(f"layer.{i}.conv" for i in range(1, count))]

    pairs = map_depth(stage(2), stage(4))
    assert pairs["layer.0.shortcut"] == "layer.0.shortcut"
    assert [pairs[f"layer.{i}.conv"] for i in range(4)] == ["layer.0.conv"] + ["layer.1.conv"] * 3
    with pytest.raises(ValueError, match="depth must be one of"):
        map_depth([], [], "middle")
    only_first = map_depth(stage(1), stage(2))  # nothing else to take from
    assert only_first["layer.1.conv"] == "layer.0.conv"


def test_the_same_size_gets_the_same_model(bank: weit.TemplateBank) -> None:
    first, second = vit(), vit()
    for model in (first, second):
        weit.kronify(model, bank)
        lay_out(model, bank.source)
    for name, tensor in first.state_dict().items():
        if not name.endswith("templates"):
            assert torch.equal(tensor, bank.source.state[name])
    assert accuracy(first) > 0.9


def test_wider_layers_keep_their_function(bank: weit.TemplateBank) -> None:
    """Inputs that come twice share the weight of the one: fed with copies, a wider layer gives copies."""
    narrow, wide = vit().double(), vit(64).double()
    for model in (narrow, wide):
        weit.kronify(model, bank.double())
        lay_out(model, bank.source)
    x = torch.randn(5, 32, dtype=torch.float64)
    y = narrow.blocks[0].mlp.fc1(x)
    assert torch.allclose(wide.blocks[0].mlp.fc1(torch.cat([x, x], 1)), torch.cat([y, y], 1), atol=1e-5)
    bank.float()


def _spanning(model: nn.Module, side: int, rules: dict[str, str] | None = None) -> weit.TemplateBank:
    """A bank from ``model`` whose templates of 1×1 or 3×3 taps span every block, so that any weight is exact."""
    count = side * side * (9 if rules else 1)
    source = copy.deepcopy(model)
    bank = weit.kronify(source, {"templates": count, "template_shape": (side, side)}, rules=rules)
    dense = dict(model.named_modules())
    with torch.no_grad():
        for role in bank:
            bank[role].copy_(torch.eye(count, bank[role][0].numel()).view_as(bank[role]))
        for path, layer in source.named_modules():
            if isinstance(layer, KronFactors):
                layer.scalers.copy_(nearest_scalers(dense[path].weight, layer.templates, bank.layout))
    bank.take_source(source)
    return bank


def test_growth_from_blocks_that_are_cut_keeps_the_function() -> None:
    """Features come again after 40, whole blocks after 48."""
    torch.manual_seed(0)
    narrow, wide = vit(40, 2).eval(), vit(80, 2).eval()
    before = copy.deepcopy(wide.state_dict())
    bank = _spanning(narrow, 16)
    weit.initialize(wide, bank, steps=0)
    x, _ = images(8)
    assert torch.allclose(wide(x), narrow(x), atol=1e-4)
    assert not torch.equal(wide.head.weight[:, :40], wide.head.weight[:, 40:])  # copies do not stay copies
    bank.source.state["blocks.0.norm1.weight"] = torch.ones(41)  # as wide in whole blocks
    wide.load_state_dict(before)
    with pytest.raises(ValueError, match="grows from 40 or 41 features to 80"):
        weit.initialize(wide, bank, steps=0)
    assert all(torch.equal(tensor, before[name]) for name, tensor in wide.state_dict().items())


def test_convolutions_grow_from_blocks_that_are_cut() -> None:
    def net(width: int) -> nn.Module:
        first, second = nn.Conv2d(1, width, 3), nn.Conv2d(width, width, 3, bias=False)
        norms = [nn.BatchNorm2d(width) for _ in range(2)]
        for norm in norms:
            norm.running_mean.uniform_(-1, 1)
        return nn.Sequential(first, norms[0], nn.ReLU(), second, norms[1], nn.Conv2d(width, 2, 1)).eval()

    torch.manual_seed(0)
    narrow, wide = net(6), net(12)
    rules = {r"0": "first", r"3": "inner"}  # the first takes one channel, of blocks of four, and goes on taking it
    weit.initialize(wide, _spanning(narrow, 4, rules), steps=0, rules=rules)
    x = torch.randn(2, 1, 8, 8)
    assert torch.allclose(wide(x), narrow(x), atol=1e-4)


@pytest.mark.parametrize("width", [32, 40])
def test_few_templates_keep_the_size_of_what_they_cannot_say(width: int) -> None:
    narrow, wide = vit(width, 2), vit(2 * width, 2)
    bank = weit.extract_bank(narrow, {"templates": 2, "template_shape": (16, 16)}).bank
    weit.initialize(wide, bank, steps=0)
    weit.kronify(narrow, bank)
    ours, theirs = (float(model.blocks[0].mlp.fc2.weight.detach().norm()) for model in (wide, narrow))
    assert ours / theirs == pytest.approx(1, abs=0.1)  # twice as many rows, each input's weight shared by two


@pytest.mark.parametrize(
    ("wide", "narrow", "norms", "gain"),
    [
        (32, 20, True, 32 / 20),
        (20, 16, True, 20 / 16),
        (20, 12, True, 20 / 12),
        (32, 16, True, 2),
        (64, 20, False, 64 / 20),  # whole blocks, as nothing says otherwise
        (32, 20, False, 1),  # or the same width
    ],
)
def test_weights_grow_by_inputs_and_not_by_blocks_of_them(wide: int, narrow: int, norms: bool, gain: float) -> None:
    """Two blocks of 16 hold 17 to 32 inputs."""

    def net(width: int) -> nn.Module:
        norm = nn.LayerNorm(width) if norms else nn.Identity()
        return nn.Sequential(norm, nn.Linear(width, 8, bias=False))

    torch.manual_seed(0)
    source, target = net(wide), net(narrow)
    bank = weit.kronify(source, {"templates": 3, "template_shape": (4, 16)}, rules={"1": "a"})
    bank.take_source(source)
    weit.kronify(target, bank, rules={"1": "a"})
    torch.testing.assert_close(target[1].weight, source[1].weight[:, :narrow] * gain**0.5)
    if wide % 16 == narrow % 16 == 0:  # then the numbers are those of whole blocks
        blocks = target[1].scalers.shape[2]
        assert torch.equal(target[1].scalers, source[1].scalers[:, :, :blocks] * torch.tensor(gain**0.5))


def test_blocks_are_counted_where_cut_inputs_may_have_had_two_widths() -> None:
    def net(width: int, other: int) -> nn.Module:
        return nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 8), nn.LayerNorm(other))

    source, target = net(64, 60), net(20, 20)
    bank = weit.kronify(source, {"templates": 3, "template_shape": (4, 16)}, rules={"1": "a"})
    bank.take_source(source)
    weit.kronify(target, bank, rules={"1": "a"})
    torch.testing.assert_close(target[1].weight, source[1].weight[:, :20] * 2**0.5)


def test_another_head_keeps_its_fresh_numbers(bank: weit.TemplateBank) -> None:
    model = vit(classes=7)
    head = model.head.weight.detach().clone()
    weit.kronify(model, bank)
    lay_out(model, bank.source)
    assert torch.equal(model.head.weight, head)
    assert torch.equal(model.pos_embed, bank.source.state["pos_embed"])


def test_foreign_models_and_banks_are_refused(bank: weit.TemplateBank) -> None:
    other = vit()
    weit.kronify(other, {"templates": 2, "template_shape": (8, 8)})
    with pytest.raises(ValueError, match="of another bank"):
        lay_out(other, bank.source)
    renamed = torch.nn.ModuleDict({"encoder": vit()})
    weit.kronify(renamed, SPEC, rules={r".*fc1": "fc1"})
    with pytest.raises(ValueError, match="of another model family"):
        lay_out(renamed, bank.source)
