"""Who is faster than this package on a shape, and what differs: what the peer does, then computed facts of the case."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from weit_kernels.shapes import FEW_ROWS

Row = Mapping[str, Any]
AUTO = "auto"
SAVES = 1.05  # an operation limit below this leaves nothing to save
AGREES = 0.1  # ratios that differ by no more are the same in two runs of the suites

# What each contender does where it is ahead, by name and kind of case: "few rows", "no saving", "saving". "": any.
_ONE_PRODUCT = "a library call of one dense product, its weight made before it"
_FEWEST = "the order of fewest operations, each step one library call over all rows"
_KEPT = "which keeps the intermediate for the backward pass; this package makes it again to save its memory"
WHAT_THEY_DO: dict[tuple[str, str], str] = {
    ("materialised", ""): _ONE_PRODUCT,
    ("materialised_compiled", ""): "one dense product, its weight made by a compiled kernel",
    ("phm", ""): _ONE_PRODUCT,
    ("peft_lokr", ""): _ONE_PRODUCT,
    ("tensorly_reconstructed", ""): _ONE_PRODUCT,
    ("tensorly_factorized", ""): _FEWEST,
    ("opt_einsum", ""): _FEWEST,
    ("opt_einsum", "few rows"): f"{_FEWEST}; its order was found before the call",
    ("fastkron", ""): "one library call a term",
    ("lycoris_lokr", ""): "two library calls a term",
    ("lycoris_lokr_weight", ""): _ONE_PRODUCT,
    ("linear_operator", ""): "two library calls a term",
}
KEEPS_INTERMEDIATE = ("opt_einsum", "tensorly_factorized")


@dataclass(frozen=True)
class Behind:
    """One contender that is faster than ``auto`` on one shape; both are ratios to the dense layer."""

    shape: str
    phase: str
    name: str
    theirs: float
    ours: float
    standing: str
    differs: str


def behind(shape: str, phase: str, found: Mapping[str, Row]) -> Iterator[Behind]:
    """All contenders of a case that are faster than ``auto``, the dense layer too."""
    ours = found.get(AUTO)
    if ours is None:
        return
    rivals = {"dense": 1.0, **{name: row["ratio"] for name, row in found.items() if name != AUTO}}
    for name, theirs in sorted(rivals.items(), key=lambda item: -item[1]):
        if theirs > ours["ratio"]:
            stands = standing(theirs, ours["ratio"])
            yield Behind(shape, phase, name, theirs, ours["ratio"], stands, _differs(name, phase, ours))


def standing(theirs: float, ours: float) -> str:
    """Whether a ratio that is higher than ours would be in another run too."""
    return "clearly" if theirs > (1 + AGREES) * ours else f"within {AGREES:.0%}"


def family(row: Row) -> str:
    """The kind of case: ``few rows``, ``no saving`` of operations, or ``saving``."""
    if row["rows"] <= FEW_ROWS:
        return "few rows"
    return "saving" if row["limit"] > SAVES else "no saving"


def _differs(name: str, phase: str, ours: Row) -> str:
    kind, N = family(ours), ours["sizes"]["N"]
    facts = {
        "few rows": f"{ours['rows']} rows",
        "no saving": f"neither order saves operations here (limit {ours['limit']:.2f}, N = {N})",
        "saving": f"`auto` reaches {ours['ratio'] / ours['limit']:.2f} of its operation limit {ours['limit']:.2f} "
        f"(N = {N})",
    }
    if name == "dense":
        return facts[kind]
    if name == ours.get("plan"):
        return "the path that `auto` chose, called by name"
    if name.startswith(("templates_first", "scalers_first", "panel", "on_the_fly")):
        return f"`auto` chose {ours.get('plan', 'another path')}"
    does = WHAT_THEY_DO.get((name, kind), WHAT_THEY_DO.get((name, ""), ""))
    if phase == "train" and name in KEEPS_INTERMEDIATE:
        does = f"{does}, {_KEPT}"
    return "; ".join(part for part in (does, facts[kind]) if part)
