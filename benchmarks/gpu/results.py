"""The result file: one JSON, written to the side and renamed, so that a run that breaks off keeps what it had.

It is also the memory of a run that has to start again after a kernel took the process with it: ``running`` names what
was under way, ``failed`` contenders are not tried twice, and stages listed in a row's ``stages`` are not repeated.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

MESSAGE_LENGTH = 600


class Results:
    """Rows of figures, one a shape and phase, each with its contenders; every change is saved at once."""

    def __init__(self, path: Path, data: dict[str, Any]) -> None:
        self.path, self.data = path, data

    @classmethod
    def create(cls, path: Path, header: Mapping[str, Any]) -> Results:
        """A new file with the facts of the machine and no rows."""
        results = cls(path, {**header, "running": None, "not_run": [], "rows": []})
        results.save()
        return results

    @classmethod
    def load(cls, path: Path) -> Results:
        """The file as another process left it."""
        return cls(path, json.loads(path.read_text()))

    def save(self) -> None:
        """Write beside the file and rename; whoever reads meanwhile gets the old one whole."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        beside = self.path.with_suffix(f".{os.getpid()}.part")
        beside.write_text(json.dumps(self.data, indent=1, allow_nan=False) + "\n")
        os.replace(beside, self.path)

    def row(self, shape: str, phase: str, facts: Mapping[str, Any]) -> dict[str, Any]:
        """The row of a shape and phase, made from ``facts`` if it is new."""
        for row in self.data["rows"]:
            if (row["shape"], row["phase"]) == (shape, phase):
                return row
        row = {"shape": shape, "phase": phase, **facts, "stages": [], "contenders": {}}
        self.data["rows"].append(row)
        return row

    def start(self, row: Mapping[str, Any], contenders: Iterable[str]) -> None:
        """Note what may bring the process down."""
        self.data["running"] = {"shape": row["shape"], "phase": row["phase"], "contenders": list(contenders)}
        self.save()

    def record(self, row: dict[str, Any], contender: str, figures: Mapping[str, Any]) -> None:
        """Keep the figures of a contender; nothing is running any more."""
        row["contenders"][contender] = dict(figures)
        self.data["running"] = None
        self.save()

    def fail(self, row: dict[str, Any], contender: str, message: str) -> None:
        """A message instead of figures; beside them if an earlier stage, as it may for the dense layer, has some."""
        self.record(row, contender, {**row["contenders"].get(contender, {}), "failed": message[:MESSAGE_LENGTH]})

    def finish(self, row: dict[str, Any], stage: str) -> None:
        """All that the stage has to say about a row is said."""
        row["stages"].append(stage)
        self.data["running"] = None
        self.save()

    def blame_running(self, message: str) -> list[str]:
        """Mark what was under way when its process died as failed; returns the contenders' names."""
        running = self.data["running"]
        if running is None:
            return []
        row = self.row(running["shape"], running["phase"], {})
        for contender in running["contenders"]:
            self.fail(row, contender, message)
        return running["contenders"]
