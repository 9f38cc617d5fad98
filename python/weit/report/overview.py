"""Several comparisons in one table: how WeiT stands beside each other start."""

from __future__ import annotations

import re
from collections.abc import Sequence
from statistics import fmean

from weit.compare import Comparison
from weit.compare.config import WEIT
from weit.report.text import LABELS

INTRODUCTION = """## Overview

Means of the deciding score over the targets, and behind the colon on how many of them WeiT is ahead of that start / level
with it / behind it. Where a start serves some of the targets only, the means are over those, its own and then WeiT's.
"""


def overview(titled: Sequence[tuple[str, Comparison]]) -> str:
    """The table in Markdown, a line for each comparison, which links to the section under its title."""
    names = [name for name in LABELS if any(name in comparison.config.starts for _, comparison in titled)]
    names.sort(key=lambda name: name != WEIT)
    lines = [["comparison", "score", *(LABELS[name] for name in names)], ["---"] * (len(names) + 2)]
    for title, comparison in titled:
        metric = comparison.metrics[0]
        score = f"{metric.label} ({'higher' if metric.higher else 'lower'} is better)"
        lines.append([f"[{title}](#{_anchor(title)})", score, *(_standing(comparison, name) for name in names)])
    return "\n".join([INTRODUCTION, *(f"| {' | '.join(cells)} |" for cells in lines)])


def _standing(comparison: Comparison, name: str) -> str:
    metric = comparison.metrics[0]
    pairs = [(row.outcomes[name], row.outcomes[WEIT]) for row in comparison.rows if name in row.outcomes]
    if not pairs:
        return "serves none" if name in comparison.config.starts else ""
    mean = metric.show(fmean(theirs.mean for theirs, _ in pairs))
    if name == WEIT:
        return mean
    if len(pairs) < len(comparison.rows):
        ours = metric.show(fmean(ours.mean for _, ours in pairs))
        mean += f" (WeiT {ours} on these {len(pairs)} of {len(comparison.rows)})"
    verdicts = [ours.ahead_of(theirs) for theirs, ours in pairs]
    return f"{mean}: {' / '.join(str(verdicts.count(verdict)) for verdict in (1, 0, -1))}"


def _anchor(title: str) -> str:
    """What GitHub calls a heading in links."""
    return re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-")
