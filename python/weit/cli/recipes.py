"""Recipes that come with the package: YAML files in ``weit/recipes/<command>``, for ``--config`` by name."""

from __future__ import annotations

from importlib.resources import as_file, files
from pathlib import Path


def recipe_names(command: str) -> dict[str, Path]:
    """Name -> file of each recipe for ``command``."""
    with as_file(files("weit") / "recipes" / command) as folder:
        return {path.stem: path for path in folder.glob("*.yaml")}


def with_recipe(arguments: list[str]) -> list[str]:
    """``arguments`` with the file of a recipe in place of its name after ``--config``; a file of that name comes first."""
    if not arguments:
        return arguments
    recipes = recipe_names(arguments[0])
    found = list(arguments)
    for i, argument in enumerate(found):
        flag, equals, name = argument.partition("=")
        if flag != "--config":
            continue
        if equals and name in recipes and not Path(name).is_file():
            found[i] = f"--config={recipes[name]}"
        elif not equals and i + 1 < len(found) and found[i + 1] in recipes and not Path(found[i + 1]).is_file():
            found[i + 1] = str(recipes[found[i + 1]])
    return found
