"""What is wrong usage of the command line: one line on stderr and exit code 2."""

from pathlib import Path

import pytest

from tests.weit.cli.commands import run


@pytest.mark.parametrize(
    "arguments",
    [["init"], ["pretrain", "--out", "x", "--templates", "0"], ["init", "--bank", "x", "--out", "x", "--steps", "-1"],
     ["train", "--out", "x", "--steps", "many"], ["train", "--out", "x", "--speed", "3"],
     ["train", "--out", "x", "--lr", "-1"], ["train", "--out", "x", "--model", "mlpp"],
     ["pretrain", "--out", "x", "--model", "mlpp"], ["fly"]],
)  # fmt: skip
def test_wrong_usage_exits_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        run(*arguments)
    assert end.value.code == 2
    assert len(capsys.readouterr().err.strip().splitlines()) == 1


@pytest.mark.parametrize("command", ["pretrain", "train", "init"])
@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--data", "cats"], 'data must be "digits" or "fashion-mnist"'),
        (["--family", "cats"], "family must be one of classification, generation, control, got 'cats'"),
        (["--width", "65"], "head_dim must divide width, got head_dim=16, width=65"),
        (["--depth", "0"], "depth must be a positive integer, got 0"),
    ],
)
def test_names_and_sizes_that_there_are_not_are_wrong_usage(
    command: str, flags: list[str], message: str, bank: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if command == "init":
        flags = ["--bank", str(bank), *flags]
    with pytest.raises(SystemExit) as end:
        run(command, *flags, "--out", tmp_path / "out")
    assert end.value.code == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_missing_flag_is_named_as_it_is_given(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        run("init")
    assert capsys.readouterr().err.startswith("weit init: the following arguments are required: --bank, --out (")
