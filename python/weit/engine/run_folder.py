"""What a run leaves on disk: its settings, ``metrics.jsonl``, TensorBoard events and checkpoints."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import nn

from weit.engine.checkpoint import Checkpoint, checkpoints, save_checkpoint
from weit.engine.config import HOW
from weit.engine.processes import Processes
from weit.files import atomic_write

Record = dict[str, float]
CONFIG, SETTINGS, METRICS, CHECKPOINTS = "config.yaml", "settings.json", "metrics.jsonl", "checkpoints"


class CannotResume(ValueError):
    """A run folder holds nothing to continue: none, a damaged one, or a run with other settings."""


class RunFolder:
    """The folder of one run, new or continued.

    Args:
        path: the folder; made if missing.
        config: what the run depends on, JSON-like, kept in ``settings.json``; a continued run must have the same, but for
            what only bears on how it is computed.
        how: the names of that.
        flags: what ``config.yaml`` holds in place of ``config``: how the command line was called.
        resume: continue from the last checkpoint, or from the start if the run was stopped before its first one; else
            begin a run that must not be there yet.
        keep: how many checkpoints stay.

    Attributes:
        checkpoint: what to continue from, or ``None`` for the start.
        history: the records written so far, up to the checkpoint.

    Raises:
        FileExistsError: ``path`` holds a run already and ``resume`` is false.
        CannotResume: nothing to continue, another config, or a damaged checkpoint.
        OSError: the folder cannot be written.
    """

    def __init__(
        self,
        path: str | Path,
        config: Mapping[str, Any],
        *,
        how: Collection[str] = HOW,
        flags: Mapping[str, Any] | None = None,
        resume: bool = False,
        keep: int = 2,
    ) -> None:
        self.path = Path(path)
        self._config: dict[str, Any] = json.loads(json.dumps(config))
        self._flags = self._config if flags is None else dict(flags)
        self._how, self._keep = how, keep
        self._checkpoints, self._metrics = self.path / CHECKPOINTS, self.path / METRICS
        self._settings = self.path / SETTINGS
        self.checkpoint: Checkpoint | None = None
        self.history: list[Record] = []
        if not resume:
            refuse_another_run(self.path)
            return
        try:
            self.checkpoint = self._latest()
            self._compare(self._read_settings() if self.checkpoint is None else self.checkpoint.state["config"])
            self.history = read_records(self._metrics, self.checkpoint.step) if self.checkpoint else []
        except ValueError as error:
            raise CannotResume(str(error)) from error

    def open(self) -> None:
        """Write the config and the records up to the checkpoint, and begin to take records."""
        from torch.utils.tensorboard import SummaryWriter  # half a second that runs without a folder need not spend

        atomic_write(self._settings, json.dumps(self._config, indent=1) + "\n")
        write_flags(self.path, self._flags)
        atomic_write(self._metrics, "".join(map(_line, self.history)))
        self._file = self._metrics.open("a")
        # What comes after the checkpoint will be written again; TensorBoard is told to forget it.
        purge = (self.checkpoint.step if self.checkpoint else 0) + 1
        self._writer = SummaryWriter(str(self.path / "tensorboard"), purge_step=purge)

    def record(self, record: Record) -> None:
        """Append one line to ``metrics.jsonl``, and the same numbers to TensorBoard."""
        self._file.write(_line(record))
        self._file.flush()
        for name, value in record.items():
            if name != "step":
                self._writer.add_scalar(name, value, int(record["step"]))

    def save(
        self,
        step: int,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        state: Mapping[str, Any],
        processes: Processes,
    ) -> None:
        """Write a checkpoint; every process calls this, see ``save_checkpoint``."""
        state = {"config": self._config, **state}
        save_checkpoint(self._checkpoints, step, model, optimizer, state, self._keep, processes)

    def close(self) -> None:
        self._file.close()
        self._writer.close()

    def _latest(self) -> Checkpoint | None:
        found = checkpoints(self._checkpoints)
        if not found:
            return None
        try:
            return Checkpoint(found[-1])
        except ValueError as error:
            older = f"; {found[-2]} is older: remove the damaged one to continue from there" if found[1:] else ""
            raise ValueError(f"{error}{older}") from error

    def _read_settings(self) -> dict[str, Any]:
        try:
            saved = json.loads(self._settings.read_text())
        except FileNotFoundError:
            raise ValueError(f"nothing to resume: no checkpoint in {self._checkpoints}, nor {self._settings}") from None
        except ValueError as error:
            raise ValueError(f"{self._settings} is damaged: {error}") from error
        if not isinstance(saved, dict):
            raise ValueError(f"{self._settings} is damaged: it holds no settings")
        return saved

    def _compare(self, saved: Mapping[str, Any]) -> None:
        names = sorted((self._config.keys() | saved.keys()) - set(self._how))
        changed = [name for name in names if self._config.get(name) != saved.get(name)]
        if changed:
            found = ", ".join(f"{name}: {saved.get(name)!r} → {self._config.get(name)!r}" for name in changed)
            called = f"; {self.path / CONFIG} says how it was called" if (self.path / CONFIG).is_file() else ""
            raise ValueError(f"config differs from that of the run to resume in {self.path} ({found}){called}")


def numbers_of(scores: object) -> dict[str, float]:
    """What ``evaluate`` gave, as JSON takes it: tensors and NumPy's numbers too are numbers.

    Raises:
        TypeError: it is something else.
    """
    if not isinstance(scores, Mapping):
        raise TypeError(f"evaluate must give numbers by name, got {type(scores).__name__}")
    numbers = {}
    for name, value in scores.items():
        try:
            numbers[name] = float(value)
        except (TypeError, ValueError, RuntimeError) as error:  # the last: a tensor of several numbers
            raise TypeError(f"evaluate must give numbers by name, got {type(value).__name__} as {name!r}") from error
    return numbers


def write_flags(folder: Path, flags: Mapping[str, Any]) -> None:
    """Write ``folder/config.yaml``: how a command was called."""
    atomic_write(folder / CONFIG, yaml.safe_dump(dict(flags), sort_keys=False))


def refuse_another_run(path: Path) -> None:
    """Raise ``FileExistsError`` if ``path`` holds a run, or is a file."""
    if path.is_file():
        raise FileExistsError(f"{path} is a file, expected a folder or nothing")
    if (path / METRICS).exists() or checkpoints(path / CHECKPOINTS):
        raise FileExistsError(f"{path} holds a run already; resume it, or name another folder")


def read_records(path: Path, last: int | None = None) -> list[Record]:
    """The records in ``path`` up to step ``last``; what comes after, perhaps a line cut short, will be written again.

    Raises:
        ValueError: a line that is no record, and is not the last.
    """
    records: list[Record] = []
    lines = path.read_text().splitlines() if path.exists() else []
    for number, line in enumerate(lines, 1):
        try:
            record = json.loads(line)
            step = record["step"]
        except (ValueError, KeyError, TypeError) as error:
            if number == len(lines):  # the process ended while it wrote this one
                break
            raise ValueError(f"{path} is damaged in line {number}") from error
        if last is not None and step > last:
            break
        records.append(record)
    return records


def _line(record: Record) -> str:
    return json.dumps(record) + "\n"
