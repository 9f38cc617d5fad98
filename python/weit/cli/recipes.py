"""Recipes that come with the package: YAML files in ``weit/recipes/<command>``, for ``--config`` by name."""

from __future__ import annotations

from importlib.resources import as_file, files
from pathlib import Path


def recipe_names(command: str) -> dict[str, Path]:
    """Name -> file of each recipe for ``command``."""
    with as_file(files("weit") / "recipes" / command) as folder:
        return {path.stem: path for path in folder.glob("*.yaml")}


def with_recipe(arguments: list[str]) -> list[str]:
    """``arguments`` with files first, so that other flags win wherever they stand, and with the file of a recipe in place of
    its name; a file of that name comes before the recipe.

    Raises:
        FileNotFoundError: there is neither.
    """
    if not arguments:
        return arguments
    recipes = recipe_names(arguments[0])
    files, others, rest = [], [], iter(arguments[1:])
    for argument in rest:
        flag, equals, name = argument.partition("=")
        if flag != "--config" or not (name := name if equals else next(rest, "")):
            others.append(argument)
        elif name in recipes and not Path(name).is_file():
            files.append(f"--config={recipes[name]}")
        elif recipes and not Path(name).is_file():
            known = ", ".join(sorted(recipes))
            raise FileNotFoundError(f"--config must name a file or one of the recipes {known}, got {name!r}")
        else:
            files.append(f"--config={name}")
    return [arguments[0], *files, *others]
