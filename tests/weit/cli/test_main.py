"""The command line: exit codes, one-line errors, and each command end to end at a tiny size."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import weit
from tests.weit.cli.commands import TINY, run
from tests.weit.disk import tree
from tests.weit.tasks.test_classification import write_fashion_mnist
from weit.cli.arguments import Parser
from weit.cli.model import DataFlags

COMMANDS = ("demo", "pretrain", "init", "train", "compare", "doctor")


@pytest.mark.parametrize("command", COMMANDS)
def test_help_names_every_flag(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        run(command, "--help")
    assert end.value.code == 0
    text = capsys.readouterr().out
    assert "--config" in text
    assert "--debug" in text


def test_pretrain_leaves_a_run_and_a_bank(bank: Path) -> None:
    names = {path.name for path in bank.parent.iterdir()}
    assert {"config.yaml", "metrics.jsonl", "tensorboard", "checkpoints", "curves.png", "bank"} <= names
    loaded = weit.TemplateBank.from_pretrained(bank)
    assert loaded.source.config["arguments"]["width"] == 32
    assert loaded.source.config["training_flops"] > 0


def test_pretraining_a_small_size_leaves_larger_ones_out(tmp_path: Path) -> None:
    assert run("pretrain", "--out", tmp_path / "run", "--size", "32x3", *TINY) == 0


def test_interleaved_layers_pretrain_at_one_width_by_default(tmp_path: Path) -> None:
    wanted = ["pretrain", "--out", tmp_path / "run", "--size", "48x5", "--layout", "interleaved", "--predict"]
    assert run(*wanted) == 0
    assert run(*wanted, "--smaller", "32x5") == 1


def test_what_training_would_refuse_is_not_predicted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    wanted = ["pretrain", "--out", tmp_path / "run", "--size", "32x2", "--batch-size", "64", "--predict"]
    assert run(*wanted, "--processes", "3") == 1
    assert "batch_size must be a multiple of processes × accumulate = 3, got 64" in capsys.readouterr().err


def test_a_config_that_is_no_text_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "binary.yaml").write_bytes(bytes(range(128, 200)))
    assert run("train", "--config", tmp_path / "binary.yaml", "--out", tmp_path / "run") == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_a_run_is_not_resumed_at_other_sizes(bank: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("pretrain", "--out", bank.parent, "--size", "32x2", "--smaller", "16x2", *TINY, "--resume") == 1
    assert "config differs from that of the run to resume" in capsys.readouterr().err


def stopped_early(folder: Path) -> None:
    """What a run leaves that was stopped before its first checkpoint."""
    for name in ("checkpoints", "metrics.jsonl"):
        path = folder / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def test_a_run_is_not_resumed_with_another_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    resume = ["train", "--out", tmp_path / "run", *TINY, "--resume"]
    assert run("train", "--size", "32x1", "--out", tmp_path / "run", *TINY) == 0
    assert run("train", "--size", "16x1", "--out", tmp_path / "other", *TINY) == 0
    stopped_early(tmp_path / "run")
    for flags, changed in (["--size", "16x1"], "arguments"), (["--init", tmp_path / "other/model"], "init"):
        capsys.readouterr()
        assert run(*resume, *flags) == 1
        assert re.search(rf"config differs from that of the run to resume in .*\b{changed}: ", capsys.readouterr().err)
    assert run(*resume, "--size", "32x1") == 0


def test_init_then_train_then_resume(bank: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("init", "--bank", bank, "--size", "48x3", "--steps", 2, "--out", tmp_path / "start") == 0
    config = json.loads((tmp_path / "start/config.json").read_text())
    assert (config["arguments"]["width"], config["arguments"]["depth"]) == (48, 3)
    assert run("train", "--init", tmp_path / "start", "--out", tmp_path / "run", *TINY) == 0
    assert "test" in capsys.readouterr().out
    trained = load_file(tmp_path / "run/model/model.safetensors")
    start = load_file(tmp_path / "start/model.safetensors")
    assert any(not torch.equal(trained[name], start[name]) for name in start)
    assert run("train", "--init", tmp_path / "start", "--out", tmp_path / "run", *TINY, "--resume") == 0
    again = load_file(tmp_path / "run/model/model.safetensors")
    assert all(torch.equal(trained[name], again[name]) for name in trained)


def test_init_keeps_heads_of_one_size(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("transformers")
    sizes = "hidden_size=32,num_hidden_layers=1,num_attention_heads=2,intermediate_size=64,patch_size=4"
    flags = ["--model", "hf:vit", "--size", sizes, "--out", tmp_path / "run", *TINY]
    assert run("pretrain", *flags) == 0
    init = ["init", "--bank", tmp_path / "run/bank", "--steps", 0, "--out", tmp_path / "start", "--size"]
    assert run(*init, "hidden_size=64,intermediate_size=128") == 0
    assert json.loads((tmp_path / "start/config.json").read_text())["arguments"]["num_attention_heads"] == 4
    assert run(*init, "hidden_size=64,intermediate_size=128,num_attention_heads=2") == 1
    assert "heads must be of one size, got [16] in bank.source and [32] in model" in capsys.readouterr().err


def test_train_takes_the_data_that_its_start_was_made_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("transformers")
    write_fashion_mnist(tmp_path)
    data = ["--data", "fashion-mnist", "--root", tmp_path]
    for model, size in ("resnet", "8x1"), ("vit", "16x1"):
        assert run("train", *data, "--model", model, "--size", size, "--out", tmp_path / model, *TINY) == 0
        flags = ["train", "--init", tmp_path / model / "model", *TINY]
        assert run(*flags, "--root", tmp_path, "--out", tmp_path / f"{model}_again") == 0
        assert json.loads((tmp_path / f"{model}_again/model/config.json").read_text())["data"] == "fashion-mnist"
        # A ConvNet takes images of any size, if they are asked for.
        assert run(*flags, "--data", "digits", "--out", tmp_path / f"{model}_other") == (model == "vit")
    assert "init must be made for this task, with img_size=8, but" in capsys.readouterr().err
    saved = json.loads((tmp_path / "resnet_other/model/config.json").read_text())
    assert (saved["data"], saved["arguments"]["img_size"]) == ("digits", 8)


def test_a_start_is_of_a_model_already(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for flag, value in (("--model", "resnet"), ("--width", 8)):
        with pytest.raises(SystemExit) as end:
            run("train", "--init", tmp_path, "--out", tmp_path / "run", flag, value)
        assert end.value.code == 2
        assert "model, size, width and depth are those of the model that init names" in capsys.readouterr().err


def test_init_gives_the_same_model_in_a_fresh_process(bank: Path, tmp_path: Path) -> None:
    flags = ["init", "--bank", bank, "--size", "16x3", "--steps", 3, "--seed", 5, "--out"]
    assert run(*flags, tmp_path / "here") == 0
    command = [sys.executable, "-m", "weit", *map(str, flags), str(tmp_path / "there")]
    subprocess.run(command, check=True, capture_output=True)
    here, there = (load_file(tmp_path / name / "model.safetensors") for name in ("here", "there"))
    assert here.keys() == there.keys()
    assert all(torch.equal(here[name], there[name]) for name in here)


def test_a_yaml_file_stands_for_flags(bank: Path, tmp_path: Path) -> None:
    (tmp_path / "init.yaml").write_text(f"bank: {bank}\nout: {tmp_path / 'a'}\nsize: 16x2\nsteps: 2\nseed: 4\n")
    assert run("init", "--config", tmp_path / "init.yaml") == 0
    assert run("init", "--config", tmp_path / "init.yaml", "--out", tmp_path / "b", "--seed", 6) == 0
    a, b = (load_file(tmp_path / name / "model.safetensors") for name in "ab")
    assert any(not torch.equal(a[name], b[name]) for name in a)
    with (tmp_path / "init.yaml").open("a") as file:
        file.write("lr: 0.01\n")  # one number stands for a list of one
    assert run("init", "--config", tmp_path / "init.yaml", "--out", tmp_path / "one") == 0
    assert (tmp_path / "one/fitting/metrics.jsonl").is_file()


def test_init_takes_the_data_that_the_bank_was_made_for() -> None:
    bank = {"family": "generation", "data": "fashion-mnist"}
    for given, family, data in (
        (DataFlags(), "generation", "fashion-mnist"),
        (DataFlags(family="generation"), "generation", "fashion-mnist"),
        (DataFlags(data="digits"), "generation", "digits"),
        (DataFlags(family="classification"), "classification", None),
    ):
        assert (given.or_else(bank).family, given.or_else(bank).data) == (family, data)
    assert DataFlags().or_else({}).task(Parser()).name == "digits"


def test_init_takes_the_size_of_images_that_the_bank_was_made_for() -> None:
    bank = {"family": "classification", "data": "folder", "image_size": 224, "augment": "randaugment"}
    for given, size, augment in (
        (DataFlags(), 224, "randaugment"),
        (DataFlags(data="hf-dataset", augment="none"), 224, "none"),
        (DataFlags(data="folder", image_size=96), 96, "randaugment"),
        (DataFlags(data="digits"), None, None),
        (DataFlags(family="generation"), None, None),
    ):
        assert (given.or_else(bank).image_size, given.or_else(bank).augment) == (size, augment)


def test_the_config_of_a_run_gives_it_again(bank: Path, tmp_path: Path) -> None:
    start, trained = tmp_path / "start", tmp_path / "run"
    assert run("init", "--bank", bank, "--size", "16x2", "--steps", 2, "--out", start) == 0
    assert run("train", "--init", start, "--out", trained, *TINY) == 0
    files = {"pretrain": (bank.parent, "bank/bank"), "init": (start, "model"), "train": (trained, "model/model")}
    for command, (folder, name) in files.items():
        assert run(command, "--config", folder / "config.yaml", "--out", tmp_path / command) == 0
        record = "fitting/lr0.001/metrics.jsonl" if command == "init" else "metrics.jsonl"
        for file in (record, f"{name}.safetensors"):
            assert (tmp_path / command / file).read_bytes() == (folder / file).read_bytes()


def test_a_bank_learns_from_a_teacher(bank: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("train", "--size", "16x1", "--out", tmp_path / "teacher", *TINY) == 0
    flags = ["--size", "32x2", "--smaller", "16x1", *TINY]
    assert run("pretrain", "--teacher", tmp_path / "teacher/model", "--out", tmp_path / "run", *flags) == 0
    taught, alone = (weit.TemplateBank.from_pretrained(folder) for folder in (tmp_path / "run/bank", bank))
    assert not torch.equal(taught["q"], alone["q"])
    costs = [each.source.config["training_flops"] for each in (taught, alone)]
    teacher = json.loads((tmp_path / "teacher/model/config.json").read_text())["training_flops"]
    assert costs[0] - costs[1] == pytest.approx(
        teacher * 4 / 3
    )  # as many answers as it took steps, each a third of one
    assert run("pretrain", "--out", tmp_path / "run", *flags, "--resume") == 1
    assert "config differs" in capsys.readouterr().err


def test_init_says_which_rate_it_took(bank: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["init", "--bank", bank, "--size", "16x2", "--steps", 3, "--out"]
    assert run(*flags, tmp_path / "both", "--lr", 1e-5, 3e-2, 1e38) == 0
    said = capsys.readouterr().out
    chosen = re.search(r"scalers fitted at (\S+); held-out loss: [\d.]+ at 1e-05, [\d.]+ at 0.03, inf at 1e\+38", said)
    assert chosen is not None, said
    assert {path.name for path in (tmp_path / "both/fitting").iterdir()} == {"lr1e-05", "lr0.03", "lr1e+38"}
    assert not list((tmp_path / "both").rglob("checkpoints"))
    assert run(*flags, tmp_path / "one", "--lr", chosen[1]) == 0
    assert "scalers fitted" not in capsys.readouterr().out
    assert (tmp_path / "one/fitting/curves.png").is_file()


def test_init_again_replaces_the_record_of_fitting(bank: Path, tmp_path: Path) -> None:
    names = {"config.json", "config.yaml", "model.safetensors"}
    assert run("init", "--bank", bank, "--steps", 2, "--lr", 1e-2, "--out", tmp_path / "start") == 0
    assert {path.name for path in (tmp_path / "start").iterdir()} == {*names, "fitting"}
    found = {path.name for path in (tmp_path / "start/fitting").iterdir()}
    assert found == {"config.yaml", "settings.json", "metrics.jsonl", "tensorboard", "curves.png"}
    assert run("init", "--bank", bank, "--steps", 0, "--out", tmp_path / "start") == 0
    assert {path.name for path in (tmp_path / "start").iterdir()} == names


ERRORS = {
    "no bank": (["init", "--bank", "nowhere", "--out", "x"], "no folder nowhere"),
    "no data": (["train", "--data", "fashion-mnist", "--root", "nowhere", "--out", "x"], "train-images-idx3"),
    "nothing to resume": (["train", "--out", "x", "--resume", *TINY], "nothing to resume"),
}


@pytest.mark.parametrize("name", ERRORS)
def test_errors_are_one_line_and_exit_1(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments, message = ERRORS[name]
    monkeypatch.chdir(tmp_path)
    assert run(*arguments) == 1
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1
    assert lines[0].startswith(f"weit {arguments[0]}: ")
    assert message in lines[0]
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("command", ["pretrain", "init", "train"])
def test_somebody_elses_folder_is_refused_before_any_work(
    command: str, bank: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    work, result, flags = {
        "pretrain": ("pretrain_bank", "bank", []),
        "init": ("start_from_bank", ".", ["--bank", bank]),
        "train": ("train_dense", "model", []),
    }[command]
    thesis = tmp_path / "out" / result / "thesis.txt"
    thesis.parent.mkdir(parents=True)
    thesis.write_text("mine")
    monkeypatch.setattr(f"weit.cli.{command}.{work}", lambda *_, **__: pytest.fail("it began"))
    assert run(command, *flags, "--out", tmp_path / "out") == 1
    assert "it holds other files (thesis.txt) and is not replaced" in capsys.readouterr().err
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [thesis]


@pytest.mark.parametrize("command", ["compare", "demo"])
def test_a_comparison_leaves_the_bank_of_a_run_alone(
    command: str, bank: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = tree(bank.parent)
    assert run(command, "--out", bank.parent, "--targets", "16x1") == 1
    assert "out must be new or the folder of an earlier comparison" in capsys.readouterr().err
    assert tree(bank.parent) == before


def test_an_error_of_the_data_is_none_of_writing(
    bank: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def lost(*_: object, **__: object) -> None:
        raise FileNotFoundError(2, "No such file or directory", "cat.jpg")

    monkeypatch.setattr("weit.cli.init.start_from_bank", lost)
    assert run("init", "--bank", bank, "--out", tmp_path / "start") == 1
    assert capsys.readouterr().err == "weit init: No such file or directory: cat.jpg\n"
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("command", ["init", "compare", "demo"])
def test_several_processes_do_not_do_the_work_of_one(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in {"WORLD_SIZE": "2", "LOCAL_RANK": "0"}.items():  # as torchrun sets them
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(f"weit.cli.{command}.run", lambda *_: pytest.fail("it began"))
    assert run(command, *(["--bank", "x"] if command == "init" else []), "--out", tmp_path / "out") == 1
    assert capsys.readouterr().err == f"weit {command}: it is for one process, but 2 were started together\n"


def test_debug_shows_the_traceback(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("init", "--bank", tmp_path / "none", "--out", tmp_path / "x", "--debug") == 1
    assert "Traceback" in capsys.readouterr().err


def test_a_damaged_bank_is_named(bank: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    weit.TemplateBank.from_pretrained(bank).save_pretrained(tmp_path / "bank")
    file = tmp_path / "bank/bank.safetensors"
    file.write_bytes(file.read_bytes()[:50])
    assert run("init", "--bank", tmp_path / "bank", "--out", tmp_path / "x") == 1
    assert "holds no whole template bank" in capsys.readouterr().err
    assert not (tmp_path / "x").exists()


def test_ctrl_c_exits_130_with_a_hint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("weit.cli.train.train_dense", interrupted)
    assert run("train", "--out", tmp_path / "run", *TINY) == 130
    assert "--resume" in capsys.readouterr().err


def test_doctor_names_machine_backends_and_extras(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("doctor") == 0
    text = capsys.readouterr().out
    for word in (torch.__version__, "triton", "digits", "timm", "c++"):
        assert word in text


def test_suites_without_pytest_are_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("weit.cli.bench.find_spec", lambda name: None)
    assert run("bench") == 1
    said = capsys.readouterr().err.strip()
    assert said == "weit bench: the suites need pytest, pytest_benchmark, pytest_timeout: pip install .[bench]"
