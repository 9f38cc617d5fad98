"""Checkpoints of a training run: safetensors and JSON, written whole or not at all, checked before anything changes.

A folder ``step_<step>`` holds ``model*.safetensors``, ``optimizer*.safetensors`` and ``state.json``. Every tensor is whole
in one of the files; a sharded run writes as many of each kind as there are processes, and any number of processes
reads them again.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from weit.engine.processes import Processes
from weit.engine.shards import is_part, placed_like, whole
from weit.files import atomic_write, digest, publish, reported

_FORMAT = {"format": "weit-checkpoint", "version": 2}
_KINDS = ("model", "optimizer")
_STATE = "state.json"
_FOLDER = re.compile(r"step_(\d{8})")


def unique_tensors(module: nn.Module) -> dict[str, Tensor]:
    """Parameters and persistent buffers of ``module``, each under the first of its names: shared ones appear once."""
    named: dict[int, tuple[str, Tensor]] = {}
    for name, tensor in module.state_dict(keep_vars=True).items():
        if isinstance(tensor, Tensor):
            named.setdefault(id(tensor), (name, tensor))
    return dict(named.values())


def save_checkpoint(
    folder: Path,
    step: int,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    state: Mapping[str, Any],
    keep: int,
    processes: Processes,
) -> None:
    """Write ``folder/step_<step>``: the tensors of model and optimizer, and ``state`` (JSON); keep the last ``keep``.

    Every process calls this. Where the model is sharded each writes its share; the folder gets its name when all are done.

    Raises:
        OSError: the folder cannot be written; older checkpoints are as they were.
        RuntimeError: another process could not write.
    """
    path = folder / f"step_{step:08d}"
    side = folder / f".{path.name}.tmp"  # a name that every process knows
    moments = {
        f"{slot}.{name}": value
        for name, parameter in model.named_parameters()
        for slot, value in optimizer.state.get(parameter, {}).items()
    }
    shards = processes.count if any(map(is_part, model.parameters())) else 1
    names = {kind: _names(kind, shards) for kind in _KINDS}
    mine = {
        names[kind][processes.rank]: share
        for kind, tensors in zip(_KINDS, (unique_tensors(model), moments), strict=True)
        if (share := _share(tensors, processes.rank, shards)) is not None
    }

    digests: dict[str, str] = {}

    def begin() -> None:
        for stale in folder.glob(".step_*"):  # of a run that was killed while it wrote, or cleared away
            shutil.rmtree(stale)
        side.mkdir(parents=True)

    def write() -> dict[str, str]:
        for name, tensors in mine.items():
            save_file(tensors, side / name)
        return {name: digest(side / name) for name in mine}

    def finish() -> None:
        sizes = {name: (side / name).stat().st_size for kind in _KINDS for name in names[kind]}
        about = {**_FORMAT, "step": step, "files": sizes, "sha256": digests}
        atomic_write(side / _STATE, json.dumps({**about, **state}, indent=1))
        publish(side, path)
        for old in checkpoints(folder)[:-keep]:
            aside = old.with_name(f".{old.name}.old")  # so that nothing half removed looks like a checkpoint
            old.rename(aside)
            shutil.rmtree(aside)

    try:
        with reported(path):
            processes.together(begin if processes.is_main else _nothing)
            for each in processes.of_all(processes.together(write)):
                digests.update(each)
            processes.together(finish if processes.is_main else _nothing)
    finally:
        if processes.is_main:
            shutil.rmtree(side, ignore_errors=True)


def checkpoints(folder: Path) -> list[Path]:
    """The checkpoints in ``folder``, oldest first."""
    return sorted(path for path in folder.glob("step_*") if _FOLDER.fullmatch(path.name))


class Checkpoint:
    """A checkpoint whose files are all there and hold what was written.

    Raises:
        ValueError: a file is missing, truncated, changed or of another format; the message names it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.state = self._read_state()
        self.step: int = self.state["step"]
        self._model, self._moments = (dict(self._tensors(kind)) for kind in _KINDS)

    def restore(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        """Put the saved numbers into ``model`` and ``optimizer``, whichever way their tensors are sharded.

        Raises:
            ValueError: it is of another model; neither has changed then.
        """
        tensors, parameters = unique_tensors(model), dict(model.named_parameters())
        for name in sorted(tensors.keys() ^ self._model.keys()):
            found = "missing" if name in tensors else "unexpected"
            raise ValueError(f"{self.path} is of another model: {name} is {found}")
        for name, saved in self._model.items():
            if (saved.shape, saved.dtype) != (tensors[name].shape, tensors[name].dtype):
                raise ValueError(
                    f"{saved.file} is of another model: {name} is {tuple(saved.shape)} {saved.dtype}, "
                    f"expected {tuple(tensors[name].shape)} {tensors[name].dtype}"
                )
        for key, saved in self._moments.items():
            name = key.partition(".")[2]
            if name not in parameters or (saved.shape and saved.shape != parameters[name].shape):
                raise ValueError(f"{saved.file} is of another model: it holds {key} {tuple(saved.shape)}")
        with torch.no_grad():
            for name, saved in self._model.items():
                tensors[name].copy_(placed_like(tensors[name], saved.read()))
        on_device = _steps_on_device(optimizer)
        for key, saved in self._moments.items():
            slot, _, name = key.partition(".")
            value = saved.read()
            if saved.shape:
                value = placed_like(parameters[name], value)
            elif on_device:
                value = value.to(parameters[name].device)
            optimizer.state[parameters[name]][slot] = value

    def _read_state(self) -> dict[str, Any]:
        file = self.path / _STATE
        try:
            state = json.loads(file.read_text())
        except FileNotFoundError:
            raise ValueError(f"{self.path} is no whole checkpoint: {file.name} is missing") from None
        except ValueError as error:
            raise ValueError(f"{file} is damaged: {error}") from error
        if not isinstance(state, dict) or {key: state.get(key) for key in _FORMAT} != _FORMAT:
            raise ValueError(f"{file} is no checkpoint of this package (version {_FORMAT['version']})")
        kinds = {"step": int, "config": dict, "files": dict, "sha256": dict}
        state.setdefault("sha256", {})  # not in checkpoints of before, whose sizes alone are checked
        for name, kind in kinds.items():
            if not isinstance(state.get(name), kind):
                raise ValueError(f"{file} is damaged: {name} is missing")
        return state

    def _tensors(self, kind: str) -> Iterator[tuple[str, _Saved]]:
        for name, size in self.state["files"].items():
            file = self.path / name
            if not name.startswith(kind):
                continue
            if not file.is_file():
                raise ValueError(f"{self.path} is no whole checkpoint: {name} is missing")
            if (found := file.stat().st_size) != size:
                raise ValueError(f"{file} is truncated or damaged: it holds {found} bytes, expected {size}")
            written = self.state["sha256"].get(name)
            if written is not None and digest(file) != written:
                raise ValueError(f"{file} is damaged: it holds other bytes than were written")
            try:
                with safe_open(file, "pt") as content:
                    for key in content.keys():  # noqa: SIM118 - it is no mapping
                        yield key, _Saved(file, key, content.get_slice(key))
            except SafetensorError as error:
                raise ValueError(f"{file} is damaged: {error}") from error


class _Saved:
    """A tensor in a file, read when it is wanted: no process has to hold a whole checkpoint."""

    def __init__(self, file: Path, key: str, header: Any) -> None:
        self.file, self._key = file, key
        self.shape = torch.Size(header.get_shape())
        self.dtype: torch.dtype = header[...].dtype if not self.shape else header[:0].dtype

    def read(self) -> Tensor:
        with safe_open(self.file, "pt") as content:
            return content.get_tensor(self._key).clone()  # not a view of the file, which goes away in time


def _names(kind: str, shards: int) -> list[str]:
    if shards == 1:
        return [f"{kind}.safetensors"]
    return [f"{kind}-{i:05d}-of-{shards:05d}.safetensors" for i in range(1, shards + 1)]


def _share(tensors: Mapping[str, Tensor], rank: int, shards: int) -> dict[str, Tensor] | None:
    """What process ``rank`` writes, so that all write about as much; ``None`` if it has no file to write.

    All go through all tensors, one by one, since a sharded one is put together by every process. The others, such as a batch
    norm's statistics, may differ between the processes: the first one's belong together.
    """
    share, given = {}, [0] * shards
    for name, tensor in sorted(tensors.items(), key=lambda item: (is_part(item[1]), -item[1].numel())):
        full = whole(tensor)
        writer = given.index(min(given)) if is_part(tensor) else 0
        given[writer] += full.numel()
        if writer == rank:
            share[name] = full.to("cpu", copy=True).contiguous()
    return share if rank < shards else None


def _steps_on_device(optimizer: torch.optim.Optimizer) -> bool:
    """Fused optimizers count their steps where the parameters are, others on the CPU."""
    return any(group.get("fused") or group.get("capturable") for group in optimizer.param_groups)


def _nothing() -> None: ...
