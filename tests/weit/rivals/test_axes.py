import pytest
import torch

from tests.weit.rivals.models import hf_vit, timm_gated_vit, timm_resnet, timm_vit, weit_vit
from weit.heads import head_dims
from weit.rivals.axes import copies, stream_sizes, width_axes

RESIDUAL, NONE = ("residual",), ()


def test_a_transformer_has_five_streams():
    model = weit_vit(16, 1)
    axes = width_axes(model)
    assert axes["blocks.0.attn.q.weight"] == (("query",), RESIDUAL)
    assert axes["blocks.0.attn.o.weight"] == (RESIDUAL, ("value",))
    assert axes["blocks.0.mlp.fc1.bias"] == (("hidden",),)
    assert axes["patch_embed.weight"] == (RESIDUAL, NONE, NONE, NONE)
    assert axes["pos_embed"] == (NONE, NONE, RESIDUAL)
    assert axes["head.weight"] == (NONE, RESIDUAL)
    assert axes["head.bias"] == (NONE,)
    assert stream_sizes(model.state_dict(), axes) == dict.fromkeys(("residual", "query", "key", "value"), 16) | {
        "hidden": 64
    }


@pytest.mark.parametrize("family", [weit_vit, timm_vit, hf_vit])
def test_families_have_the_same_streams(family):
    model = family(16)
    sizes = stream_sizes(model.state_dict(), width_axes(model))
    assert {name: size for name, size in sizes.items() if name != "hidden"} == dict.fromkeys(
        ("residual", "query", "key", "value"), 16
    )
    assert head_dims(model) == {8}


def test_a_fused_layer_has_its_streams_side_by_side():
    assert width_axes(timm_vit())["blocks.0.attn.qkv.weight"] == (("query", "key", "value"), RESIDUAL)


def test_norms_of_queries_and_keys_do_not_grow():
    timm = pytest.importorskip("timm")
    model = timm.create_model("deit_tiny_patch16_224", embed_dim=16, depth=1, num_heads=2, qk_norm=True)
    assert width_axes(model)["blocks.0.attn.q_norm.weight"] == (NONE,)


def test_channels_of_a_convolutional_network():
    axes = width_axes(timm_resnet())
    assert axes["conv1.weight"] == (RESIDUAL, NONE, NONE, NONE)
    assert axes["layer2.0.conv1.weight"] == (RESIDUAL, RESIDUAL, NONE, NONE)
    assert axes["layer2.0.bn1.running_var"] == (RESIDUAL,)
    assert axes["layer2.0.bn1.num_batches_tracked"] == ()
    assert axes["fc.weight"] == (NONE, RESIDUAL)


def test_both_parts_of_a_gated_mlp_have_the_hidden_features():
    model = timm_gated_vit(16)
    axes = width_axes(model)
    assert axes["blocks.0.mlp.fc1.weight"] == (("hidden", "hidden"), RESIDUAL)
    assert stream_sizes(model.state_dict(), axes)["hidden"] == 32


def test_gates_that_no_rules_know_of_are_refused():
    model = weit_vit(16, 1)
    model.blocks[0].mlp.fc1 = torch.nn.Linear(16, 128)
    with pytest.raises(ValueError, match=r"mlp\.fc2\.weight has 64 hidden features, others 128"):
        width_axes(model)


def test_copies_come_stream_by_stream():
    assert copies(3, 5, ("residual",)).tolist() == [0, 1, 2, 0, 1]
    assert copies(4, 6, ("query", "key")).tolist() == [0, 1, 0, 2, 3, 2]
    assert torch.equal(copies(4, 4, ("value",)), torch.arange(4))
