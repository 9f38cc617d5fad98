import pytest
import torch
from torch import nn

from weit.models import VisionTransformer, create_model
from weit.rivals.weight_selection import initialize_like


def vit(width, depth, head_dim=4):
    return VisionTransformer(img_size=8, width=width, depth=depth, head_dim=head_dim)


def number(model):
    """Give every parameter values from which its indices can be read: 1000 x axis 0 + axis 1, layers apart by 1e6."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            layer = next((int(part) for part in name.split(".") if part.isdigit()), 0)
            flat = parameter.view(parameter.shape[0], -1) if parameter.dim() > 1 else parameter[:, None]
            values = 1000.0 * torch.arange(flat.shape[0])[:, None] + torch.arange(flat.shape[1]) + 1e6 * layer
            parameter.copy_(values.view_as(parameter))
    return model.double()


def chosen(weight):
    """The rows and columns that a numbered weight was taken from."""
    within = weight.detach() % 1e6
    return (within[:, 0] // 1000).long().tolist(), (within[0] % 1000).long().tolist()


def test_same_size_is_a_copy():
    source = vit(16, 2)
    target = initialize_like(vit(16, 2), source)
    torch.testing.assert_close(target.state_dict(), source.state_dict(), rtol=0, atol=0)


def test_what_is_taken_is_counted_where_the_source_is(monkeypatch):
    """As a GPU demands; the meta device stands for it, and would take an index from anywhere."""
    select = torch.Tensor.index_select

    def strict(tensor, axis, index):
        assert index.device == tensor.device
        return select(tensor, axis, index)

    monkeypatch.setattr(torch.Tensor, "index_select", strict)
    initialize_like(vit(8, 1).to("meta"), vit(16, 1).to("meta"))


def test_the_residual_stream_takes_the_same_features_everywhere():
    target = initialize_like(vit(8, 1).double(), number(vit(16, 1)))
    every_second = list(range(0, 16, 2))
    block = target.blocks[0]
    for columns in (block.attn.q, block.attn.k, block.attn.v, block.mlp.fc1, target.head):
        assert chosen(columns.weight)[1] == every_second
    for rows in (block.attn.o, block.mlp.fc2):
        assert chosen(rows.weight)[0] == every_second
    for vector in (block.norm1.weight, target.norm.bias, target.patch_embed.bias):
        assert (vector.detach() // 1000).long().tolist() == every_second
    assert chosen(block.mlp.fc1.weight)[0] == chosen(block.mlp.fc2.weight)[1] == list(range(0, 64, 2))


def test_heads_are_taken_whole():
    block = initialize_like(vit(8, 1).double(), number(vit(16, 1))).blocks[0]
    heads_0_and_2 = [0, 1, 2, 3, 8, 9, 10, 11]
    for layer in (block.attn.q, block.attn.k, block.attn.v):
        assert chosen(layer.weight)[0] == heads_0_and_2
        assert (layer.bias.detach() // 1000).long().tolist() == heads_0_and_2
    assert chosen(block.attn.o.weight)[1] == heads_0_and_2


def test_sizes_that_do_not_divide_reach_from_end_to_end():
    target = initialize_like(vit(12, 1).double(), number(vit(16, 1)))
    columns = chosen(target.head.weight)[1]
    assert columns == torch.linspace(0, 15, 12).round().long().tolist()
    assert (columns[0], columns[-1]) == (0, 15)


@pytest.mark.parametrize(("layers", "expected"), [("even", [0, 2, 4]), ("first", [0, 1, 2])])
def test_layers_are_picked(layers, expected):
    target = initialize_like(vit(8, 3).double(), number(vit(8, 5)), layers=layers)
    assert [int(block.norm1.weight[0].detach() // 1e6) for block in target.blocks] == expected


def test_any_model_family_with_numbered_layers():
    def network(width, stages):
        return nn.ModuleDict(
            {"stages": nn.ModuleList(nn.ModuleList(nn.Linear(width, width) for _ in range(n)) for n in stages)}
        )

    source = network(4, (3, 5))
    target = initialize_like(network(4, (2, 3)), source)
    for stage, pairs in enumerate([[(0, 0), (1, 2)], [(0, 0), (1, 2), (2, 4)]]):
        for ours, theirs in pairs:
            assert torch.equal(target["stages"][stage][ours].weight, source["stages"][stage][theirs].weight)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (None, "source must be a trained model, got None"),
        (vit(8, 2), "source must be at least as large as target, but pos_embed is"),
        (vit(16, 1), "source must have at least as many layers as target, but blocks has 1 in source and 2 in target"),
        (nn.Linear(3, 3), "source must be of the target's family, but has no pos_embed"),
    ],
)
def test_a_source_that_cannot_give_enough_is_refused(source, message):
    target = vit(16, 2)
    before = {name: value.clone() for name, value in target.state_dict().items()}
    with pytest.raises(ValueError, match=message):
        initialize_like(target, source)
    torch.testing.assert_close(target.state_dict(), before, rtol=0, atol=0)


def test_unknown_layer_selection_is_refused():
    with pytest.raises(ValueError, match='layers must be "even" or "first", got \'last\''):
        initialize_like(vit(8, 1), vit(8, 1), layers="last")


def test_the_parts_of_a_fused_layer_are_selected_alike():
    arguments = {"img_size": 8, "in_chans": 1, "num_classes": 3, "patch_size": 2, "depth": 1}
    source, target = (create_model("dit", **arguments, width=width) for width in (48, 32))
    with torch.no_grad():
        source.blocks[0].modulation.bias.copy_(torch.arange(48).repeat(6))
    initialize_like(target, source)
    parts = target.blocks[0].modulation.bias.view(6, 32)
    assert all(torch.equal(part, parts[0]) for part in parts)
    assert (parts[0, 0], parts[0, -1]) == (0, 47)
