"""Recipes by name: found, overridden by flags, and every one of them readable by its command."""

import pytest

from weit.cli import main
from weit.cli.recipes import recipe_names, with_recipe

ALL = [(command, name) for command in ("compare", "pretrain") for name in recipe_names(command)]


def test_a_name_stands_for_its_file(tmp_path, monkeypatch):
    name, file = next(iter(recipe_names("compare").items()))
    assert with_recipe(["compare", "--config", name, "--seeds", "1"]) == [
        "compare",
        "--config",
        str(file),
        "--seeds",
        "1",
    ]
    assert with_recipe(["compare", f"--config={name}"]) == ["compare", f"--config={file}"]
    monkeypatch.chdir(tmp_path)
    (tmp_path / name).write_text("seeds: 2")
    assert with_recipe(["compare", "--config", name]) == ["compare", "--config", name]  # the user's own file


@pytest.mark.parametrize("arguments", [[], ["compare"], ["compare", "--config"], ["fly", "--config", "x"]])
def test_everything_else_stays(arguments):
    assert with_recipe(arguments) == arguments


@pytest.mark.parametrize(("command", "name"), ALL)
def test_every_recipe_can_be_read(command, name, capsys, monkeypatch):
    """What its command would run is caught before it runs."""
    seen = []
    monkeypatch.setattr(f"weit.cli.{command}.run", lambda parser, given: seen.append(given))
    assert main([command, "--config", name, "--out", "x"]) == 0
    assert seen
