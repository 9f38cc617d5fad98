"""Real models of every family that has built-in rules, built without downloads."""

import copy

import pytest
import safetensors.torch
import torch
from torch import nn

from weit import KronConv2d, KronFusedLinear, KronLinear, TemplateBank, extract_bank, initialize, kronify, materialize
from weit.models.vit import VisionTransformer
from weit.rules import FAMILIES, find_rules


def timm_model(name, **arguments):
    timm = pytest.importorskip("timm")
    return timm.create_model(name, num_classes=10, **arguments)


def hf_model(name, **arguments):
    transformers = pytest.importorskip("transformers")
    config = getattr(transformers, f"{name}Config")(num_labels=10, **arguments)
    return getattr(transformers, f"{name}ForImageClassification")(config)


VIT = dict(
    hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, image_size=32, patch_size=8
)
RESNET = dict(embedding_size=16, hidden_sizes=[32, 64], depths=[2, 1])


def gated_vit(width):
    """Gates in their own half of ``fc1``, as in ``vit_giant_patch14_dinov2``."""
    layers = pytest.importorskip("timm.layers")
    sizes = {"embed_dim": width, "depth": 2, "num_heads": width // 16}
    return timm_model("vit_tiny_patch16_224", img_size=32, mlp_layer=layers.SwiGLUPacked, **sizes)


# How to build it, its image size, the roles expected and how many layers become Kron layers.
VIT_ROLES = {"q", "k", "v", "o", "fc1", "fc2"}
MODELS = {
    "weit vit": (lambda: VisionTransformer(img_size=8, width=32, depth=2), (1, 8), VIT_ROLES, 2 * 6),
    "timm deit tiny": (lambda: timm_model("deit_tiny_patch16_224"), (3, 224), VIT_ROLES, 12 * 6),
    "timm distilled deit": (
        lambda: timm_model("deit_tiny_distilled_patch16_224", depth=2, img_size=32),
        (3, 32),
        VIT_ROLES,
        2 * 6,
    ),
    "timm vit with gated MLPs": (
        lambda: gated_vit(64),
        (3, 32),
        (VIT_ROLES - {"fc1"}) | {"fc1_first", "fc1_second"},
        2 * 7,
    ),
    "timm resnet18": (
        lambda: timm_model("resnet18", zero_init_last=False),
        (3, 64),
        {f"stage{i}_3x3" for i in range(1, 5)} | {f"stage{i}_1x1" for i in range(2, 5)},
        16 + 3,
    ),
    "timm resnet50": (
        lambda: timm_model("resnet50", layers=(1, 1, 1, 1), zero_init_last=False),
        (3, 32),
        {f"stage{i}_{k}" for i in range(1, 5) for k in ("1x1", "3x3")},
        4 * 4,
    ),
    "timm convnext": (
        lambda: timm_model("convnext_atto", depths=(1, 1, 2, 1)),
        (3, 32),
        {f"stage{i}_{k}" for i in range(4) for k in ("fc1", "fc2")} | {f"stage{i}_2x2" for i in range(1, 4)},
        5 * 2 + 3,
    ),
    "timm convnext of linear layers": (
        lambda: timm_model("convnext_tiny", depths=(1, 1, 1, 1), dims=(16, 32, 32, 32)),
        (3, 32),
        {f"stage{i}_{k}" for i in range(4) for k in ("fc1", "fc2")} | {f"stage{i}_2x2" for i in range(1, 4)},
        4 * 2 + 3,
    ),
    "hf vit": (lambda: hf_model("ViT", **VIT), (3, 32), VIT_ROLES, 2 * 6),
    "hf deit": (lambda: hf_model("DeiT", **VIT), (3, 32), VIT_ROLES, 2 * 6),
    "hf resnet basic": (
        lambda: hf_model("ResNet", layer_type="basic", **RESNET),
        (3, 32),
        {f"stage{i}_{k}" for i in range(2) for k in ("1x1", "3x3")},
        3 * 2 + 2,
    ),
    "hf resnet bottleneck": (
        lambda: hf_model("ResNet", layer_type="bottleneck", **RESNET),
        (3, 32),
        {f"stage{i}_{k}" for i in range(2) for k in ("1x1", "3x3")},
        3 * 3 + 2,
    ),
    "hf convnext": (
        lambda: hf_model("ConvNext", hidden_sizes=[16, 32], depths=[1, 2], num_stages=2),
        (3, 32),
        {f"stage{i}_{k}" for i in range(2) for k in ("fc1", "fc2")} | {"stage1_2x2"},
        3 * 2 + 1,
    ),
    "hf convnext v2": (
        lambda: hf_model("ConvNextV2", hidden_sizes=[16, 32], depths=[1, 2], num_stages=2),
        (3, 32),
        {f"stage{i}_{k}" for i in range(2) for k in ("fc1", "fc2")} | {"stage1_2x2"},
        3 * 2 + 1,
    ),
}


def logits(model, x):
    y = model(x)
    y = getattr(y, "logits", y)
    return sum(y) if isinstance(y, tuple) else y


@pytest.mark.parametrize(("make", "image", "roles", "count"), MODELS.values(), ids=MODELS)
def test_kronify_train_materialize(make, image, roles, count):
    torch.manual_seed(0)
    model = make().double()
    channels, size = image
    x = torch.randn(2, channels, size, size, dtype=torch.float64)
    shapes = {k: v.shape for k, v in model.state_dict().items()}
    bank = kronify(model, {"templates": 4})
    layers = [m for m in model.modules() if isinstance(m, (KronLinear, KronConv2d))]
    assert set(bank.roles) == roles
    assert len(layers) == count
    assert {id(layer.templates) for layer in layers} == {id(bank[role]) for role in roles}

    before = {k: v.detach().clone() for k, v in model.named_parameters()}
    logits(model, x).square().mean().backward()
    assert all(p.grad is not None for p in bank.parameters())
    torch.optim.AdamW(model.parameters(), 1e-3).step()
    assert all(not torch.equal(p, before[k]) for k, p in model.named_parameters() if p.grad is not None)

    model.eval()
    with torch.no_grad():
        expected = logits(model, x)
        materialize(model)
        torch.testing.assert_close(logits(model, x), expected, rtol=1e-5, atol=1e-5)
    assert not any(type(m).__module__.startswith("weit.nn") for m in model.modules())
    assert {k: v.shape for k, v in model.state_dict().items()} == shapes


@pytest.mark.parametrize("name", ["timm deit tiny", "weit vit"])
def test_a_bank_serves_other_sizes_of_the_family(name):
    if name == "weit vit":
        big, small = VisionTransformer(width=64, depth=3), VisionTransformer(width=32, depth=5)
    else:
        big = timm_model("deit_tiny_patch16_224", depth=2)
        small = timm_model("deit_tiny_patch16_224", depth=3, embed_dim=96)
    bank = kronify(big, {"templates": 2, "template_shape": (16, 16)})
    kronify(small, bank)
    part = small.blocks[2].attn.q if name == "weit vit" else small.blocks[2].attn.qkv.parts[0]
    assert part.templates is bank["q"]


def test_a_fused_qkv_keeps_its_parts_apart():
    model = timm_model("deit_tiny_patch16_224", depth=1)
    qkv = model.blocks[0].attn.qkv
    weight, bias = qkv.weight.detach().clone(), qkv.bias.detach().clone()
    bank, scalers = extract_bank(model, {"templates": 144, "template_shape": (16, 16)})
    kronify(model, bank)
    fused = model.blocks[0].attn.qkv
    assert isinstance(fused, KronFusedLinear)
    for i, part in enumerate(fused.parts):
        assert part.templates is bank["qkv"[i]]
        assert torch.equal(part.scalers, scalers[f"blocks.0.attn.qkv.parts.{i}"])
    torch.testing.assert_close(fused.weight, weight)
    torch.testing.assert_close(fused.bias, bias)


def test_gates_stay_gates_at_another_width():
    torch.manual_seed(0)
    small, wide = (gated_vit(width).double().eval() for width in (32, 64))
    for parameter in small.parameters():
        nn.init.normal_(parameter, std=0.1)
    bank = extract_bank(small, {"templates": 256, "template_shape": (16, 16)}).bank
    x = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    # With repeated features every norm sees what it saw, but for its epsilon.
    torch.testing.assert_close(initialize(wide, bank)(x), small(x), rtol=1e-3, atol=1e-3)


def test_hugging_face_models_on_a_bank_are_saved_as_documented(tmp_path):
    torch.manual_seed(0)
    model, again, onward = (hf_model("ViT", **VIT).eval() for _ in range(3))
    x = torch.randn(2, 3, 32, 32)
    bank = kronify(model, {"templates": 2})
    expected = model(x).logits
    with pytest.raises(RuntimeError, match="shared tensors"):
        model.save_pretrained(tmp_path / "refused")

    safetensors.torch.save_model(model, tmp_path / "model.safetensors")
    shared = kronify(again, {"templates": 2})
    assert safetensors.torch.load_model(again, tmp_path / "model.safetensors") == (set(), [])
    assert torch.equal(again(x).logits, expected)
    assert torch.equal(shared["q"], bank["q"])

    bank.take_source(model)
    bank.save_pretrained(tmp_path / "bank")
    loaded = TemplateBank.from_pretrained(tmp_path / "bank")
    kronify(onward, loaded)
    assert not onward.load_state_dict(loaded.source.state, strict=False).unexpected_keys
    assert torch.equal(onward(x).logits, expected)

    materialize(copy.deepcopy(model)).save_pretrained(tmp_path / "dense")
    dense = type(model).from_pretrained(tmp_path / "dense")
    torch.testing.assert_close(dense(x).logits, expected, rtol=1e-4, atol=1e-5)
    assert torch.equal(model(x).logits, expected)


def nested(paths):
    """A module tree with a small linear layer at each path."""
    root = nn.Module()
    for path in paths:
        parent = root
        *folders, name = path.split(".")
        for folder in folders:
            if not hasattr(parent, folder):
                parent.add_module(folder, nn.Module())
            parent = getattr(parent, folder)
        parent.add_module(name, nn.Linear(16, 16))
    return root


def test_names_of_transformers_4():
    layer = "vit.encoder.layer.0."
    paths = {
        layer + "attention.attention.query": "q",
        layer + "attention.attention.key": "k",
        layer + "attention.attention.value": "v",
        layer + "attention.output.dense": "o",
        layer + "intermediate.dense": "fc1",
        layer + "output.dense": "fc2",
    }
    model = nested([*paths, "vit.embeddings.patch_embeddings.projection", "classifier"])
    bank = kronify(model, {"templates": 2})
    assert {p: next(r for r in bank.roles if bank[r] is model.get_submodule(p).templates) for p in paths} == paths
    assert type(model.classifier) is nn.Linear


def test_wrapped_models_are_recognised_and_numbered_stages_are_not():
    vit = VisionTransformer(width=16, depth=1)
    assert find_rules(nn.ModuleDict({"backbone": vit})) is find_rules(vit)
    with pytest.raises(ValueError, match="no built-in rules know the layers of Sequential"):
        find_rules(nn.Sequential(vit))
    with pytest.raises(ValueError, match="no built-in rules know the layers of HighResolutionNet"):
        kronify(timm_model("hrnet_w18_small"), {})
    with pytest.raises(ValueError, match=r"'layer1\.0\.conv1' is a SelectiveKernel; only Linear"):
        kronify(timm_model("skresnet18"), {})
    with pytest.raises(ValueError, match="no built-in rules know the layers of Swin"):
        kronify(timm_model("swin_tiny_patch4_window7_224", depths=(1, 1), embed_dim=16, num_heads=(1, 1)), {})


def test_every_family_has_rules_with_proper_roles():
    names = [family.name for family in FAMILIES]
    assert len(set(names)) == len(names)
    for family in FAMILIES:
        for role in family.rules.values():
            for part in [role] if isinstance(role, str) else role:
                TemplateBank({part.replace("\\", ""): torch.ones(1, 2, 2)})
