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
        marks: patterns each of which matches some layer of a model of this family.
        rules: pattern on module path → role, as ``kronify`` takes it. Layers that no pattern names stay
            dense.
    """

    name: str
    marks: tuple[str, ...]
    rules: Rules
