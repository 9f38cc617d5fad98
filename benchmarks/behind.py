"""Who is faster than this package on a shape, and what differs: what the peer does, then computed facts of the case."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.same_work import CLOSE, FEW, at_most, kind_of, noise
from benchmarks.tables import AUTO, PATHS, Table, cases, ratio, ratio_of

Row = Mapping[str, Any]
SAVES = 1.05  # an operation limit below this leaves nothing to save

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


def behind(shape: str, phase: str, found: Mapping[str, Row], noise: float) -> Iterator[Behind]:
    """All contenders of a case that are faster than ``auto``, the dense layer too; ``auto``'s own choice, called by name, if
    it is so by more than ``noise``, the factor by which ratios of the same work differ.
    """
    ours = found.get(AUTO)
    if ours is None:
        return
    rivals = {"dense": 1.0, **{name: row["ratio"] for name, row in found.items() if name != AUTO}}
    for name, theirs in sorted(rivals.items(), key=lambda item: -item[1]):
        if theirs > ours["ratio"] * (noise if name == ours.get("plan") else 1.0):
            stands = standing(theirs / ours["ratio"], noise)
            yield Behind(shape, phase, name, theirs, ours["ratio"], stands, _differs(name, phase, ours))


def standing(factor: float, noise: float) -> str:
    """Whether something that is ``factor`` times as fast as ours is so by more than the same work timed twice."""
    return "clearly" if factor > noise else f"within {at_most(noise)}"


def family(row: Row) -> str:
    """The kind of case: ``few rows``, ``no saving`` of operations, or ``saving``."""
    if kind_of(row) == FEW:
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
    if name.startswith(PATHS):
        return f"`auto` chose {ours.get('plan', 'another path')}"
    does = WHAT_THEY_DO.get((name, kind), WHAT_THEY_DO.get((name, ""), ""))
    if phase == "train" and name in KEEPS_INTERMEDIATE:
        does = f"{does}, {_KEPT}"
    return "; ".join(part for part in (does, facts[kind]) if part)


def not_ahead(rows: Sequence[Row]) -> Table:
    """Where something else is faster than ``auto``, and what differs."""
    apart = noise(rows)
    lines = [
        [case.shape, case.phase, case.name, f"{found[AUTO]['rows']}", ratio_of(found, case.name) or "1.00",
         ratio_of(found, AUTO), f"{case.theirs / case.ours:.2f}", case.standing, case.differs]
        for suites in (("linear", "conv2d"), ("peers",))
        for (shape, phase), found in cases(rows, suites).items()
        for case in behind(shape, phase, found, apart[kind_of(found[AUTO])] if AUTO in found else 1.0)
    ] + [
        [_timed(row), "train", "dense", f"{row.get('rows', '')}", "1.00", ratio(row), f"{1 / row['ratio']:.2f}",
         standing(1 / row["ratio"], apart[kind_of(row)]), f"limit {row['limit']:.2f}" if "limit" in row else "a whole model"]
        for row in rows
        if row.get("suite") in ("models", "growth") and row["ratio"] < 1
    ]  # fmt: skip
    return Table(
        "Where this package is not ahead",
        "Everything that was faster than `auto` in the same run, single layers first, then layers of the growth curves and "
        "whole models, which stand beside the dense ones alone; with both ratios to the dense layer; the dense layer "
        "itself has ratio 1. `clearly`: by a larger factor than two ratios of the same work of this package differ by in "
        f"this run, and than {CLOSE}; few rows and more count apart. Else that factor is named, and the case may come the "
        "other way round in another run"
        + (
            ", and `auto` has more visits: with few the dense layer, which feels others most, looks slower."
            if any(row.get("visits", 1) > 1 for row in rows)
            else "."
        ),
        ("shape", "phase", "who is faster", "rows", "theirs", "ours", "factor", "by how much", "what differs"),
        lines,
        words=3,
        reason=True,
    )


def _timed(row: Row) -> str:
    """What a row of the whole models or of the growth curves is of."""
    return f"{row['what']}, {row['axis']} {row['value']}" if row["suite"] == "growth" else row["shape"]
