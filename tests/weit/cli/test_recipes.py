"""Recipes by name: found, overridden by flags, and every one of them readable by its command."""

import pytest

from weit.cli import main
from weit.cli.recipes import recipe_names, with_recipe

ALL = [(command, name) for command in ("compare", "pretrain") for name in recipe_names(command)]


def test_a_name_stands_for_its_file(tmp_path, monkeypatch):
    name, file = next(iter(recipe_names("compare").items()))
    for config in (["--config", name], [f"--config={name}"]):
        assert with_recipe(["compare", "--seeds", "1", *config]) == ["compare", f"--config={file}", "--seeds", "1"]
    monkeypatch.chdir(tmp_path)
    (tmp_path / name).write_text("seeds: 2")
    assert with_recipe(["compare", "--config", name]) == ["compare", f"--config={name}"]  # the user's own file


@pytest.mark.parametrize("arguments", [[], ["compare"], ["compare", "--config"], ["fly", "--config=x"]])
def test_everything_else_stays(arguments):
    assert with_recipe(arguments) == arguments


@pytest.mark.parametrize(("command", "name"), ALL)
def test_every_recipe_can_be_read(command, name, capsys, monkeypatch):
    """What its command would run is caught before it runs."""
    seen = []
    monkeypatch.setattr(f"weit.cli.{command}.run", lambda parser, given: seen.append(given))
    assert main([command, "--config", name, "--out", "x"]) == 0
    assert seen


def test_flags_win_wherever_they_stand(tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr("weit.cli.train.run", lambda parser, given: seen.append((given.steps, str(given.out))))
    (tmp_path / "a.yaml").write_text("steps: 7\nout: there\n")
    file = str(tmp_path / "a.yaml")
    for config in (["--config", file], [f"--config={file}"]):
        assert main(["train", "--steps", "3", "--out", "here", *config]) == 0
        assert main(["train", *config, "--steps", "3", "--out", "here"]) == 0
        assert main(["train", "--steps", "3", *config]) == 0
    assert seen == [(3, "here"), (3, "here"), (3, "there")] * 2


def test_a_config_that_is_not_there(capsys):
    assert main(["compare", "--config", "digits-vitt"]) == 2
    said = capsys.readouterr().err
    assert said.startswith("weit: --config must name a file or one of the recipes digits-")
    assert said.count("\n") == 1
