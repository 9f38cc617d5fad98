"""Dataclasses as command-line flags: one flag a field, its help from the docstring."""

from __future__ import annotations

import re
import types
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import MISSING, Field, fields
from pathlib import Path
from typing import Any, NoReturn, TypeVar, Union, get_args, get_origin, get_type_hints

import docstring_parser
import jsonargparse
import yaml

Config = TypeVar("Config")
_OF_ONE_CALL = ("config", "debug", "resume", "predict", "fresh")


class Parser(jsonargparse.ArgumentParser):
    """A parser whose errors are one line and exit code 2; in its files one value may stand where several can."""

    def parse_string(self, content: str, *args: Any, **kwargs: Any) -> jsonargparse.Namespace:
        several = {action.dest for action in self._actions if action.nargs == "+"}
        try:
            values = yaml.safe_load(content)
        except yaml.YAMLError:
            values = None  # jsonargparse says what is wrong
        if isinstance(values, dict):
            alone = {
                name: [value]
                for name, value in values.items()
                if name in several and isinstance(value, str | int | float)
            }
            content = yaml.safe_dump({**values, **alone}) if alone else content
        return super().parse_string(content, *args, **kwargs)

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        prog, said = self.prog.replace(" [options]", ""), " ".join(message.split())
        if missing := re.search(r"required: (\w+)\.", said):  # seen from above: command.flag_of_it
            prog, command = f"{prog} {missing[1]}", missing[1]
            said = re.sub(rf"\b{command}\.(\w+)", lambda flag: f"--{flag[1].replace('_', '-')}", said)
        self.exit(2, f"{prog}: {said} (--help lists what it takes)\n")


def add_fields(parser: Parser, config: type, skip: Collection[str] = ()) -> None:
    """A flag for each field of the dataclass ``config``."""
    hints, helps = get_type_hints(config), _helps(config)
    for each in fields(config):
        if each.name not in skip:
            flag = f"--{each.name.replace('_', '-')}"
            parser.add_argument(flag, help=helps.get(each.name, ""), **_kind(hints[each.name], each))


def read_fields(parser: Parser, given: jsonargparse.Namespace, config: type[Config], **others: Any) -> Config:
    """A ``config`` from the flags that ``add_fields`` made; what it refuses is an error in usage."""
    hints = get_type_hints(config)
    values = {each.name: given[each.name] for each in fields(config) if each.name not in others}  # type: ignore[arg-type]
    for name, value in values.items():
        if isinstance(value, list) and any(get_origin(part) is tuple for part in _union(hints[name])):
            values[name] = tuple(value)
    try:
        return config(**values, **others)
    except (TypeError, ValueError) as error:
        parser.error(str(error))


@contextmanager
def usage(parser: Parser) -> Iterator[None]:
    """What the block refuses, given nothing but flags, is an error in usage."""
    try:
        yield
    except ValueError as error:
        parser.error(str(error))


def _kind(hint: Any, each: Field[Any]) -> dict[str, Any]:
    """Arguments of ``add_argument`` for a field."""
    if each.default is MISSING and each.default_factory is MISSING:
        return {"type": hint, "required": True}
    default: Any = each.default_factory() if each.default_factory is not MISSING else each.default
    if hint is bool:
        return {"action": "store_true", "default": default}
    many = [part for part in _union(hint) if get_origin(part) in (list, tuple)]
    if not many:
        return {"type": hint, "default": default}
    elements = get_args(many[0])
    count = "+" if get_origin(many[0]) is list else len(elements)
    # A list: jsonargparse writes checked elements back into the default it was given.
    return {"type": elements[0], "nargs": count, "default": None if default is None else list(default)}


def _union(hint: Any) -> tuple[Any, ...]:
    return get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)


def _helps(config: type) -> dict[str, str]:
    """Field -> what the docstring of its class says about it."""
    helps = {}
    for base in reversed(config.__mro__):
        for parameter in docstring_parser.parse(base.__doc__ or "").params:
            helps[parameter.arg_name] = " ".join((parameter.description or "").replace("`", "").split())
    return helps


def flags_of(given: jsonargparse.Namespace) -> dict[str, Any]:
    """The flags as ``config.yaml`` keeps them, which ``--config`` takes again; without what one call alone is told."""
    kept = {name: value for name, value in given.as_dict().items() if name not in _OF_ONE_CALL}
    return {name: str(value) if isinstance(value, Path) else value for name, value in kept.items()}
