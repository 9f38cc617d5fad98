"""Checkpoints of a training run: safetensors and JSON, written whole or not at all, checked before anything changes."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from weit.files import atomic_dir, atomic_write

_FORMAT = {"format": "weit-checkpoint", "version": 1}
_MODEL, _OPTIMIZER, _STATE = "model.safetensors", "optimizer.safetensors", "state.json"
_FOLDER = re.compile(r"step_(\d{8})")


def unique_tensors(module: nn.Module) -> dict[str, Tensor]:
    """Parameters and persistent buffers of ``module``, each under the first of its names: shared ones appear once."""
    named: dict[int, tuple[str, Tensor]] = {}
    for name, tensor in module.state_dict(keep_vars=True).items():
        if isinstance(tensor, Tensor):
            named.setdefault(id(tensor), (name, tensor))
    return dict(named.values())


def save_checkpoint(
    folder: Path, step: int, model: nn.Module, optimizer: torch.optim.Optimizer, state: Mapping[str, Any], keep: int
) -> Path:
    """Write ``folder/step_<step>``: the tensors of model and optimizer, and ``state`` (JSON); keep the last ``keep``.

    Raises:
        OSError: the folder cannot be written; older checkpoints are as they were.
    """
    path = folder / f"step_{step:08d}"
    moments = {
        f"{slot}.{name}": value
        for name, parameter in model.named_parameters()
        for slot, value in optimizer.state.get(parameter, {}).items()
    }
    with atomic_dir(path) as temporary:
        save_file(_detached(unique_tensors(model)), temporary / _MODEL)
        save_file(_detached(moments), temporary / _OPTIMIZER)
        atomic_write(temporary / _STATE, json.dumps({**_FORMAT, "step": step, **state}, indent=1))
    for old in checkpoints(folder)[:-keep]:
        shutil.rmtree(old)
    return path


def checkpoints(folder: Path) -> list[Path]:
    """The checkpoints in ``folder``, oldest first."""
    return sorted(path for path in folder.glob("step_*") if _FOLDER.fullmatch(path.name))


class Checkpoint:
    """A checkpoint that has been read and is known to be whole.

    Raises:
        ValueError: a file is missing, truncated or of another format; the message names it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.state = self._read_state()
        self.step: int = self.state["step"]
        self._model = self._read_tensors(_MODEL)
        self._moments = self._read_tensors(_OPTIMIZER)

    def restore(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        """Put the saved numbers into ``model`` and ``optimizer``.

        Raises:
            ValueError: it is of another model; neither has changed then.
        """
        tensors, parameters = unique_tensors(model), dict(model.named_parameters())
        file = self.path / _MODEL
        for name in sorted(tensors.keys() ^ self._model.keys()):
            raise ValueError(f"{file} is of another model: {name} is {'missing' if name in tensors else 'unexpected'}")
        for name, saved in self._model.items():
            if (saved.shape, saved.dtype) != (tensors[name].shape, tensors[name].dtype):
                raise ValueError(
                    f"{file} is of another model: {name} is {tuple(saved.shape)} {saved.dtype}, "
                    f"expected {tuple(tensors[name].shape)} {tensors[name].dtype}"
                )
        slots: dict[str, dict[str, Tensor]] = {}
        for key, saved in self._moments.items():
            slot, _, name = key.partition(".")
            if name not in parameters or (saved.dim() and saved.shape != parameters[name].shape):
                raise ValueError(f"{self.path / _OPTIMIZER} is of another model: it holds {key} {tuple(saved.shape)}")
            slots.setdefault(name, {})[slot] = saved
        with torch.no_grad():
            for name, saved in self._model.items():
                tensors[name].copy_(saved)
        device_of_step = next(iter(parameters.values())).device if _steps_on_device(optimizer) else torch.device("cpu")
        for name, moments in slots.items():
            optimizer.state[parameters[name]] = {
                slot: value.to(device_of_step if slot == "step" else parameters[name].device)
                for slot, value in moments.items()
            }

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
        if not isinstance(state.get("step"), int) or not isinstance(state.get("config"), dict):
            raise ValueError(f"{file} is damaged: step or config is missing")
        return state

    def _read_tensors(self, name: str) -> dict[str, Tensor]:
        file = self.path / name
        try:
            return load_file(file)
        except FileNotFoundError:
            raise ValueError(f"{self.path} is no whole checkpoint: {name} is missing") from None
        except SafetensorError as error:
            raise ValueError(f"{file} is truncated or damaged: {error}") from error


def _detached(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in tensors.items()}


def _steps_on_device(optimizer: torch.optim.Optimizer) -> bool:
    """Fused optimizers count their steps where the parameters are, others on the CPU."""
    return any(group.get("fused") or group.get("capturable") for group in optimizer.param_groups)
