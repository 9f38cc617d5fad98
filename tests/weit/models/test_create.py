import copy
import pickle

import pytest
import torch

from weit.models import VisionTransformer, create_model


def test_vit_gets_its_arguments():
    model = create_model("vit", img_size=8, in_chans=1, num_classes=10, width=32, depth=3)
    assert isinstance(model, VisionTransformer)
    assert len(model.blocks) == 3


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("timm:vit_tiny_patch16_224", {"patch_size": 8, "embed_dim": 32, "depth": 1, "num_heads": 2}),
        ("timm:resnet18", {}),
        ("hf:vit", {"patch_size": 8, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}),
        ("hf:resnet", {"embedding_size": 8, "hidden_sizes": [8, 8], "depths": [1, 1]}),
        ("resnet", {"width": 8, "depth": 2}),
        ("convnext", {"width": 8, "depth": 2}),
    ],
)
def test_other_libraries_give_logits_too(name, arguments):
    pytest.importorskip("timm" if name.startswith("timm:") else "transformers")
    model = create_model(name, img_size=32, in_chans=1, num_classes=10, **arguments).eval()
    images = torch.randn(2, 1, 32, 32)
    for one in (model, copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert one(images).shape == (2, 10)


def test_the_usual_resnet18_by_width_depth_and_stages():
    timm = pytest.importorskip("timm")
    pytest.importorskip("transformers")
    ours = create_model("resnet", img_size=32, width=64, depth=2, stages=4)
    theirs = timm.create_model("resnet18")
    assert sum(p.numel() for p in ours.parameters()) == sum(p.numel() for p in theirs.parameters())


@pytest.mark.parametrize("name", ["resnet", "convnext"])
@pytest.mark.parametrize("size", ["width", "depth", "stages"])
def test_sizes_of_presets_are_positive(name, size):
    with pytest.raises(ValueError, match=f"{size} must be a positive integer, got 0"):
        create_model(name, img_size=32, **{size: 0})


@pytest.mark.parametrize("name", ["vitt", "timm", "timm:", "jax:vit", "", 5, None, ["vit"]])
def test_unknown_names_are_refused(name):
    with pytest.raises(ValueError, match=r'model must be "vit", .*, "timm:<model>" or "hf:<model type>", got '):
        create_model(name)


def test_unknown_arguments_are_refused():
    with pytest.raises(ValueError, match=r"model vit refuses its arguments: .*'widht'"):
        create_model("vit", widht=64)


def test_a_model_timm_lacks():
    pytest.importorskip("timm")
    with pytest.raises(ValueError, match=r"model must be one that timm\.list_models\(\) names, got 'nonesuch'"):
        create_model("timm:nonesuch")


class Touches:
    """A pickle that leaves a file behind where it is loaded."""

    def __init__(self, trace):
        self.trace = trace

    def __reduce__(self):
        return open, (self.trace, "w")


@pytest.mark.parametrize(
    ("name", "nested"), [("timm:resnet18", False), ("hf:timm_wrapper", True), ("vit", False)]
)  # fmt: skip
def test_no_argument_names_weights_to_read(tmp_path, name, nested):
    file = tmp_path / "weights.pth"
    file.write_bytes(pickle.dumps(Touches(tmp_path / "trace")))
    arguments = {"checkpoint_path": str(file)}
    with pytest.raises(ValueError, match=f"model {name} starts from its own random weights, so it takes no checkpoint"):
        create_model(name, **({"architecture": "resnet18", "model_args": arguments} if nested else arguments))
    with pytest.raises(ValueError, match="it takes no pretrained_cfg"):
        create_model(name, pretrained_cfg={"file": str(file)})
    assert not (tmp_path / "trace").exists()


def test_what_a_library_asserts_is_a_refusal():
    pytest.importorskip("timm")
    with pytest.raises(ValueError, match=r"model timm:vit_tiny_patch16_224 refuses its arguments: ."):
        create_model("timm:vit_tiny_patch16_224", img_size=32, embed_dim=30, num_heads=4)


@pytest.mark.parametrize("ratio", ["4", float("inf"), float("nan"), 0.0, None])
def test_the_ratio_of_hidden_features_is_a_number(ratio):
    with pytest.raises(ValueError, match="mlp_ratio must leave at least one hidden feature, got"):
        create_model("vit", img_size=8, width=16, depth=1, mlp_ratio=ratio)


def test_hugging_face_knows_the_type_and_its_arguments():
    pytest.importorskip("transformers")
    with pytest.raises(ValueError, match="model hf:vit refuses its arguments: its configuration has no 'hidden_siz'"):
        create_model("hf:vit", img_size=8, patch_size=4, hidden_siz=32)
    with pytest.raises(ValueError, match=r'"hf:" and a model type of transformers, .*\'vitt\'; near it: vit') as found:
        create_model("hf:vitt")
    assert len(str(found.value)) < 200


def test_windows_of_the_pre_training_are_sizes():
    with pytest.raises(
        ValueError, match=r"vit refuses its arguments: .*'pretrained_window_sizes'"
    ):  # by the model itself
        create_model("vit", pretrained_window_sizes=8)
