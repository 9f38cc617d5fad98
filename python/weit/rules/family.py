"""What a built-in set of rules consists of."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

Role = str | tuple[str, ...] | None
Rules = Mapping[str, Role]

# A model may sit inside others (`module.`, `vit.`), but not inside a numbered stage: that would be another
# family.
PREFIX = r"(?:[A-Za-z_]\w*\.)*"


@dataclass(frozen=True)
class Family:
    """Rules for models that name their layers alike.

    Attributes:
        name: for messages.
        marks: patterns each of which matches the path of some module of a model of this family, or ``path:class``, the class
            being the module's own or one that it derives from.
        rules: pattern on module path → role, as ``kronify`` takes it. Layers that no pattern names stay
            dense.
    """

    name: str
    marks: tuple[str, ...]
    rules: Rules
