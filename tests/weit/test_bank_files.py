"""A bank's files that are damaged, changed, of an earlier version or somebody else's."""

import json

import pytest
import torch

from tests.weit.test_bank import make_bank
from weit import TemplateBank


def break_json(folder):
    (folder / "config.json").write_text("{")


def edit_config(**changes):
    def edit(folder):
        config = json.loads((folder / "config.json").read_text()) | changes
        (folder / "config.json").write_text(json.dumps({k: v for k, v in config.items() if v != "delete"}))

    return edit


def truncate(name, size):
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:size])


def all_of(*damages):
    return lambda folder: [damage(folder) for damage in damages]


def drop(name):
    return lambda folder: (folder / name).unlink()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (break_json, "config.json is no JSON: "),
        (lambda folder: (folder / "config.json").write_bytes(b"\xff\xfe"), "config.json is no JSON: "),
        (lambda folder: (folder / "config.json").write_text("[" * 100_000), "config.json is no JSON: "),
        (lambda folder: (folder / "config.json").write_text("[]"), r"config.json must hold an object, got \[\]"),
        (edit_config(format="other"), "config.json is not of format 'weit-bank'"),
        (edit_config(version=2), "version 1"),
        (edit_config(layout="blocks"), "layout must be one of"),
        (edit_config(layout="delete"), "config.json lacks 'layout'"),
        (edit_config(layout=3), "'layout' in config.json must be a string, got 3"),
        (edit_config(sha256=None), "'sha256' in config.json must be an object, got null"),
        (edit_config(head_dims=8), "'head_dims' in config.json must be a list, got 8"),
        (edit_config(head_dims=["8"]), "each of 'head_dims' in config.json must be an integer, got \"8\""),
        (edit_config(relative_error=None), "'relative_error' in config.json must be an object, got null"),
        (edit_config(relative_error={"q": "x"}), "'relative_error' of 'q' in config.json must be a number, got \"x\""),
        (edit_config(templates="delete"), "config.json lacks 'templates'"),
        (edit_config(templates={"q": [4, 8, 8]}), "name other roles or shapes"),
        (edit_config(templates={"q": [4, 8, 8], "stage1_3x3": [1, 1, 1, 1, 1]}), "name other roles or shapes"),
        (edit_config(source=[1]), r"'source' in config.json must be an object, got \[1\]"),
        (edit_config(source="delete"), "config.json lacks 'source'"),
        (truncate("bank.safetensors", 700), "bank.safetensors holds other bytes than were written"),
        (truncate("bank.safetensors", 4), "bank.safetensors holds other bytes than were written"),
        (truncate("source.safetensors", 0), "source.safetensors holds other bytes than were written"),
        (all_of(truncate("bank.safetensors", 4), edit_config(sha256="delete")), "bank.safetensors is damaged: "),
        (drop("config.json"), "no config.json"),
        (drop("bank.safetensors"), "no bank.safetensors"),
        (drop("source.safetensors"), "no source.safetensors"),
    ],
)
def test_a_damaged_bank_is_one_clear_error(tmp_path, damage, message):
    make_bank().save_pretrained(tmp_path / "bank")
    damage(tmp_path / "bank")
    with pytest.raises(ValueError, match=f"{tmp_path}/bank holds no whole template bank: .*{message}"):
        TemplateBank.from_pretrained(tmp_path / "bank")


def test_the_folder_of_a_run_says_where_its_bank_is(tmp_path):
    make_bank().save_pretrained(tmp_path / "run" / "bank")
    with pytest.raises(ValueError, match=f"it is the folder of a run, whose bank is in {tmp_path}/run/bank"):
        TemplateBank.from_pretrained(tmp_path / "run")


@pytest.mark.parametrize("name", ["bank.safetensors", "source.safetensors"])
def test_a_changed_byte_is_found(tmp_path, name):
    make_bank().save_pretrained(tmp_path / "bank")
    file = tmp_path / "bank" / name
    numbers = bytearray(file.read_bytes())
    numbers[-2] ^= 1
    file.write_bytes(numbers)
    with pytest.raises(ValueError, match=f"{name} holds other bytes than were written"):
        TemplateBank.from_pretrained(tmp_path / "bank")


def test_a_bank_that_does_not_say_its_heads_is_read(tmp_path):
    make_bank().save_pretrained(tmp_path / "bank")
    edit_config(head_dims="delete")(tmp_path / "bank")
    assert TemplateBank.from_pretrained(tmp_path / "bank").source.head_dims == []


def test_nan_in_a_file_is_refused(tmp_path):
    TemplateBank({"a": torch.ones(1, 2, 2)}).save_pretrained(tmp_path / "bank")
    file, config_file = tmp_path / "bank" / "bank.safetensors", tmp_path / "bank" / "config.json"
    file.write_bytes(file.read_bytes()[:-4] + b"\x00\x00\xc0\x7f")
    with pytest.raises(ValueError, match=r"bank\.safetensors holds other bytes than were written"):
        TemplateBank.from_pretrained(tmp_path / "bank")
    config = json.loads(config_file.read_text())
    del config["sha256"]  # as in banks of before
    config_file.write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"bank\.safetensors: 'a' holds NaN or infinity"):
        TemplateBank.from_pretrained(tmp_path / "bank")
