"""Laying out scalers."""

import pytest
import torch

import weit
from tests.weit.toys import SPEC, accuracy, pretrained, vit
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
