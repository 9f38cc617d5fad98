"""Tables of a result file: what was measured, beside what, and what could not run."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Row = Mapping[str, Any]
AUTO, MATERIALISED, COMPILED = "auto", "materialised", "materialised_compiled"
SHORT = 2e9  # operations of the dense layer, after more of which cache holds nothing that a call could bring back
PATHS = ("templates_first_", "scalers_first_", "panel_", "on_the_fly_")


@dataclass(frozen=True)
class Table:
    """A titled table of texts; the first ``words`` columns, and the last if ``reason``, are words, the rest numbers."""

    title: str
    note: str
    headings: Sequence[str]
    rows: Sequence[Sequence[str]]
    words: int = 2
    reason: bool = False

    def is_words(self, column: int) -> bool:
        return column < self.words or (self.reason and column == len(self.headings) - 1)

    def markdown(self) -> str:
        rule = ["---" if self.is_words(i) else "--:" for i in range(len(self.headings))]
        lines = [_line(self.headings), "|" + "|".join(rule) + "|", *map(_line, self.rows)]
        return "\n".join(lines)


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def compared(row: Row) -> bool:
    """Whether a row has a ratio to the dense layer and is not that layer's own, which is for pytest-benchmark's tables."""
    return "ratio" in row and row.get("contender") != "dense"


Cases = dict[tuple[str, str], dict[str, Row]]


def cases(rows: Iterable[Row], suites: Sequence[str]) -> Cases:
    """(shape, phase) → contender → its figures, in the order of the file."""
    found: Cases = {}
    for row in rows:
        if row.get("suite") in suites:
            found.setdefault((row["shape"], row["phase"]), {})[row["contender"]] = row
    return found


def ours(rows: Sequence[Row]) -> Table:
    """``auto`` beside the dense layer, its operation limit, the best path and the weight made anew."""
    lines = []
    for (shape, phase), found in cases(rows, ("linear", "conv2d")).items():
        auto = found.get(AUTO)
        if auto is None:
            continue
        best = max(
            (name for name in found if name.startswith(PATHS)), key=lambda name: found[name]["ratio"], default=""
        )
        lines.append(
            [
                shape,
                phase,
                f"{auto['rows']}",
                _time(auto, "dense_"),
                _time(auto),
                ratio_of(found, AUTO),
                _range(auto),
                f"{auto['limit']:.2f}",
                f"{auto['ratio'] / auto['limit']:.2f}",
                auto["plan"],
                f"{best} {ratio_of(found, best)}" if best else "",
                ratio_of(found, MATERIALISED),
                ratio_of(found, COMPILED),
            ]
        )
    return Table(
        "This package beside the dense layer",
        f"{_times(rows)} `ratio` is how many times as fast as the dense layer by that, `visits` the lowest and the highest "
        "ratio of a single visit to both. "
        "`limit` is that ratio if operations alone counted, `share` how much of it was reached; in training they "
        "include this package's making the intermediate again in the backward pass, so a peer that keeps it can exceed it. "
        "`auto` is what the package chooses (`plan`); `best path` is the fastest of all paths and backends asked for by "
        "name; `materialised` makes the weight anew in every call, eager and under `torch.compile`.",
        ("shape", "phase", "rows", "dense", "auto", "ratio", "visits", "limit", "share", "plan", "best path", MATERIALISED,
         "compiled"),
        lines,
    )  # fmt: skip


def peers(rows: Sequence[Row]) -> Table:
    """How many times as fast as the dense layer this package and every peer are."""
    found = cases(rows, ("peers",))
    names = list(dict.fromkeys(name for contenders in found.values() for name in contenders))
    lines = []
    for (shape, phase), contenders in found.items():
        best = max(contenders, key=lambda name: contenders[name]["ratio"])
        cells = [ratio_of(contenders, name) for name in names]
        lines.append([shape, phase, f"{contenders[best]['rows']}", *cells, best])
    return Table(
        "Other packages that compute the same function",
        f"How many times as fast as the dense layer each is, {_by(rows)}; the last column names the fastest. "
        + " ".join(f"`{name}`: {_about(found, name)}." for name in names),
        ("shape", "phase", "rows", *names, "fastest"),
        lines,
        reason=True,
    )


def whole_models(rows: Sequence[Row]) -> Table:
    lines = [
        [
            row["shape"],
            f"{row['batch']}",
            f"{row['dense_parameters'] / 1e6:.1f} M",
            f"{row['parameters'] / 1e6:.1f} M",
            f"{row['batch'] / row['dense_seconds']:.2f}",
            f"{row['batch'] / row['seconds']:.2f}",
            ratio(row),
        ]
        for row in rows
        if row.get("suite") == "models"
    ]
    return Table(
        "Whole models",
        "Pre-training steps (forward, cross-entropy, backward, AdamW) of timm models, dense and after "
        f"`weit.kronify(model, {{'templates': 8}})`, {_by(rows)}.",
        ("model", "batch", "parameters, dense", "on a bank", "images/s, dense", "on a bank", "ratio"),
        lines,
        words=1,
    )


def growth(rows: Sequence[Row]) -> Table:
    lines = [
        [row["what"], row["axis"], f"{row['value']}", _time(row, "dense_"), _time(row), ratio(row)]
        for row in rows
        if row.get("suite") == "growth"
    ]  # fmt: skip
    return Table(
        "How cost grows",
        "One size varies, the others stay: a 1024 x 1024 layer of 16 x 16 blocks with N = 8 and 512 rows (forward and "
        f"backward), and a ViT of width 192 and depth 4 on 8 images of 32 x 32 (a training step). {_times(rows)}",
        ("what", "which size", "value", "dense", "this package", "ratio"),
        lines,
    )


def _time(row: Row, whose: str = "") -> str:
    """In ms: of the fastest rounds and, in brackets, the median and its spread; or these alone."""
    seconds, spread = f"{1e3 * row[f'{whose}seconds']:.3f}", f"± {1e3 * row[f'{whose}iqr']:.3f}"
    return f"{seconds} ({1e3 * row[f'{whose}median']:.3f} {spread})" if "fastest" in row else f"{seconds} {spread}"


def by_fastest(rows: Sequence[Row]) -> bool:
    """Whether times are those of the fastest rounds, not medians."""
    return any("fastest" in row for row in rows)


def _range(row: Row) -> str:
    """The lowest and the highest ratio of a visit."""
    found = [visit["dense_seconds"] / visit["seconds"] for visit in row.get("by_visit", ())]
    return f"{min(found):.2f} to {max(found):.2f}" if len(found) > 1 else ""


def _times(rows: Sequence[Row]) -> str:
    """What the times are."""
    if by_fastest(rows):
        return (
            "Times are what the fastest tenth of the interleaved rounds of a visit take (of ten or fewer, the fastest), in "
            "its fastest visit, and, in brackets, the medians of all ± the interquartile range, in ms: other users of the "
            "machine slow rounds down and make none faster. (Of several runs pooled, medians are those of the runs'.) A "
            f"layer of less than {SHORT / 1e9:g} · 10⁹ dense operations is called once before each round, untimed, so that "
            "it finds in cache what fits there, and so is the dense layer."
        )
    return "Times are medians of interleaved rounds ± the interquartile range, in ms."


def _by(rows: Sequence[Row]) -> str:
    return "by its fastest rounds" if by_fastest(rows) else "by medians"


def ratio_of(found: Mapping[str, Row], name: str) -> str:
    return ratio(found[name]) if name in found else ""


def ratio(row: Row) -> str:
    return f"{row['ratio']:.2f}"


def _about(found: Cases, name: str) -> str:
    return next(contenders[name]["about"] for contenders in found.values() if name in contenders)


def outcomes(title: str, note: str, rows: Sequence[Row]) -> Table:
    """Contenders that have no figures, grouped by the reason."""
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        groups.setdefault((row["suite"], row["reason"]), []).append(row)
    lines = [
        [suite, _names(group, "contender"), _names(group, "shape"), f"{len(group)}", reason]
        for (suite, reason), group in groups.items()
    ]
    return Table(title, note, ("suite", "who", "shapes", "cases", "why"), lines, words=3, reason=True)


def _names(rows: Sequence[Row], key: str, most: int = 4) -> str:
    names = list(dict.fromkeys(row[key] for row in rows if key in row))
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
