import json

import pytest
import torch
from safetensors.torch import save_file

from tests.weit.disk import full_disk, tree
from weit.models import create_model, load_model, save_model

ARGUMENTS = {"img_size": 8, "width": 16, "depth": 1}


@pytest.fixture
def saved(tmp_path):
    torch.manual_seed(0)
    model = create_model("vit", **ARGUMENTS)
    save_model(model, tmp_path / "model", "vit", ARGUMENTS, training_flops=7)
    return model, tmp_path / "model"


def test_what_is_saved_comes_back(saved):
    model, folder = saved
    loaded, config = load_model(folder)
    torch.testing.assert_close(loaded.state_dict(), model.state_dict(), rtol=0, atol=0)
    assert (config["model"], config["arguments"], config["training_flops"]) == ("vit", ARGUMENTS, 7)
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "model.safetensors"]


def test_an_older_model_is_replaced(saved):
    _, folder = saved
    arguments = {**ARGUMENTS, "depth": 2}
    save_model(create_model("vit", **arguments), folder, "vit", arguments)
    assert len(load_model(folder)[0].blocks) == 2


def test_tied_weights_are_saved(tmp_path):
    model = create_model("vit", **ARGUMENTS)
    model.blocks[0].attn.k.weight = model.blocks[0].attn.q.weight
    save_model(model, tmp_path / "model", "vit", ARGUMENTS)
    torch.testing.assert_close(load_model(tmp_path / "model")[0].state_dict(), model.state_dict(), rtol=0, atol=0)


DAMAGED = r"model\.safetensors is damaged or does not fit its config\.json: "


def forget_bytes(folder):
    """As in folders of before."""
    config = json.loads((folder / "config.json").read_text())
    del config["sha256"]
    (folder / "config.json").write_text(json.dumps(config))


def test_a_flipped_bit_is_found(saved):
    model, folder = saved
    file = folder / "model.safetensors"
    content = bytearray(file.read_bytes())
    content[-2] ^= 1
    file.write_bytes(content)
    with pytest.raises(ValueError, match=DAMAGED + "it holds other bytes than were written"):
        load_model(folder)
    forget_bytes(folder)
    loaded = load_model(folder)[0].state_dict()
    assert sum(int((loaded[name] != tensor).sum()) for name, tensor in model.state_dict().items()) == 1


def test_truncated_weights_are_one_error(saved):
    _, folder = saved
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-5])
    with pytest.raises(ValueError, match=DAMAGED):
        load_model(folder)
    forget_bytes(folder)
    with pytest.raises(ValueError, match=DAMAGED):
        load_model(folder)


def test_weights_of_another_size_are_one_error(saved):
    _, folder = saved
    forget_bytes(folder)
    other = create_model("vit", **{**ARGUMENTS, "width": 32})
    save_file(other.state_dict(), folder / "model.safetensors")
    with pytest.raises(ValueError, match=DAMAGED + r"Error\(s\) in loading"):
        load_model(folder)


OURS = '{"format": "weit-model", "model": '


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("{", "config.json is no JSON"),
        ("[]", r"config.json must hold an object, got \[\]"),
        ("{}", "config.json lacks 'format'"),
        ('{"format": "other"}', "its format is 'other', expected 'weit-model'"),
        (OURS + '"vit"}', "config.json lacks 'arguments'"),
        (OURS + '"vit", "arguments": {"width": -1}}', "width must be a positive integer"),
        (OURS + '"vit", "arguments": [1]}', r"'arguments' in config.json must be an object, got \[1\]"),
        (OURS + '"vit", "arguments": {}, "sha256": 7}', "'sha256' in config.json must be an object, got 7"),
        (OURS + '5, "arguments": {}}', "'model' in config.json must be a string, got 5"),
        (OURS + '"vit", "arguments": {"mlp_ratio": Infinity}}', "mlp_ratio"),
        (OURS + '"vit", "arguments": {"name": "dit"}}', "name"),
    ],
)
def test_a_foreign_config_is_one_error(saved, text, reason):
    _, folder = saved
    (folder / "config.json").write_text(text)
    with pytest.raises(ValueError, match=rf"config\.json is damaged or not of this package: .*{reason}"):
        load_model(folder)


def test_missing_files_are_named(saved):
    _, folder = saved
    (folder / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"model\.safetensors"):
        load_model(folder)
    with pytest.raises(FileNotFoundError, match="nowhere"):
        load_model(folder.parent / "nowhere")


def test_a_full_disk_changes_nothing(saved):
    model, folder = saved
    before = tree(folder.parent)
    with full_disk(), pytest.raises(OSError, match="could not write"):
        save_model(model, folder, "vit", ARGUMENTS)
    assert tree(folder.parent) == before


def test_config_is_json_that_says_what_it_is(saved):
    assert json.loads((saved[1] / "config.json").read_text())["format"] == "weit-model"
