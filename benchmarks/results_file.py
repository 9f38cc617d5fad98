"""A result file: pytest-benchmark's JSON with what ``benchmarks.record`` added."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import tables
from benchmarks.behind import not_ahead
from benchmarks.memory import tables as memory_tables
from benchmarks.rerun import agreement, rerun
from benchmarks.same_work import CLOSE, at_most, pairs, same_work
from benchmarks.tables import Table

BUSY = 1.25  # times the fastest rounds that half of all may take, before a report says that others slowed them down
ENOUGH = 10  # pairs of the same work, before they say how far to trust others
_CHANGED = " with local changes"


def not_of_one(commit: str) -> bool:
    """Whether a run's ``commit`` does not say which code ran."""
    return commit.endswith(_CHANGED) or commit in ("unversioned", "unknown", "None")


@dataclass(frozen=True)
class Results:
    """What one run of the suites found."""

    name: str
    data: Mapping[str, Any]

    @classmethod
    def read(cls, path: Path) -> Results:
        """Read a file that ``pytest benchmarks --benchmark-json`` wrote.

        Raises:
            ValueError: it is none.
        """
        try:
            data = json.loads(path.read_text())
        except ValueError as error:  # of bytes that are no text, too
            raise ValueError(f"{path} is no JSON: {error}") from error
        if not isinstance(data, dict) or not {"machine_info", "benchmarks", "weit"} <= data.keys():
            raise ValueError(f"{path} is no result of these suites: write it with pytest benchmarks --benchmark-json")
        return cls(path.stem, data)

    @property
    def rows(self) -> list[dict[str, Any]]:
        """The figures of every benchmark that has a ratio to the dense layer and is not that layer itself."""
        return [row for bench in self.data["benchmarks"] if tables.compared(row := bench["extra_info"])]

    @property
    def machine(self) -> dict[str, str]:
        """What ran this, in words."""
        info = self.data["machine_info"]
        commits, dates = (" and ".join(dict.fromkeys(run[what] for run in self.runs)) for what in ("commit", "date"))
        return {
            **info["weit"],
            "threads": f"{info['threads']}",
            **({"freed memory": "kept"} if self.data["weit"].get("keeps_memory") else {}),
            **({"large tensors": "on large pages"} if self.data["weit"].get("large_pages") else {}),
            **self._visits,
            "device": self.data["weit"]["device"],
            "dtype": self.data["weit"]["dtype"],
            **({"runs": f"{len(self.runs)}"} if len(self.runs) > 1 else {}),
            "commit": commits,
            "date": dates,
        }

    @property
    def runs(self) -> list[dict[str, str]]:
        """Commit and date of each run that this is pooled from; of itself if it is none."""
        commit = self.data["commit_info"]
        dirty = _CHANGED if commit.get("dirty") else ""
        own = {"commit": f"{str(commit.get('id'))[:12]}{dirty}", "date": self.data["datetime"][:10]}
        return self.data["weit"].get("runs", [own])

    @property
    def _visits(self) -> dict[str, str]:
        """At how many moments figures were taken, and in how many rounds."""
        rows = [row for row in self.rows if "visits" in row]
        counts = {what: [row[what] for row in rows] for what in ("visits", "rounds")} if rows else {}
        return {what: f"{min(count)} to {max(count)} a figure" for what, count in counts.items()}

    @property
    def warning(self) -> str:
        """What a reader must know before any number."""
        return "A quick run on small sizes: the figures say that the suites work and nothing else." * bool(
            self.data["weit"]["quick"]
        )

    def reading(self, again: Results | None = None) -> str:
        """How to read a ratio, and how far to trust one."""
        quietest = " in its quietest moments" * tables.by_fastest(self.rows)
        text = f"A ratio of 2 means half the dense layer's time on this machine{quietest}."
        slower = [row["dense_median"] / row["dense_seconds"] for row in self.rows if "dense_median" in row]
        if slower and statistics.median(slower) > BUSY:
            text += (
                f" The machine was busy: half of the dense layer's rounds took {statistics.median(slower):.2f} times its "
                "fastest or longer, in the middle of all cases. Ratios may be as far off."
            )
        if len(twice := pairs(self.rows)) >= ENOUGH:
            agree = sum(pair.factor <= CLOSE for pair in twice)
            text += (
                f" Of {len(twice)} pairs of this package's ratios that are of the same work in this run {agree} are within "
                f"a factor of {CLOSE}, all within {at_most(max(pair.factor for pair in twice))}."
            )
        if again:
            agree, count = agreement(self.rows, again.rows)
            text += f" Run again, {agree} of {count} ratios came within a factor of {CLOSE}." * bool(count)
        return f"{text} Runs at several hours pooled agree better: `weit bench --add`."

    def tables(self, again: Results | None = None) -> list[Table]:
        """All tables that have rows, what failed first; with a second run, how far that one is from this."""
        found = self.data["weit"]
        every = [
            tables.outcomes("FAILED", "Raised, or computed something else than the reference: not timed.",
                            found["failed"]),
            same_work(self.rows),
            tables.ours(self.rows),
            tables.peers(self.rows),
            not_ahead(self.rows),
            memory_tables.memory(found["memory"]),
            memory_tables.budgets(found["budgets"]),
            tables.whole_models(self.rows),
            tables.growth(self.rows),
            *([rerun(self.rows, again.rows)] if again else []),
            tables.outcomes("What could not run, and why", "Grouped by reason, with the number of cases.", found["not_run"]),
        ]  # fmt: skip
        return [table for table in every if table.rows]
