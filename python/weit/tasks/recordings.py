"""Recorded episodes of an expert: what is in them, and their file."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from weit.files import atomic_write

_FORMAT, _VERSION = "weit-episodes", 1


@dataclass(frozen=True)
class Recording:
    """Episodes of an expert, and how well a random policy does, which a score is measured from.

    Attributes:
        environment: Gymnasium's name of it.
        observations: ``(steps, obs_dim)``, all episodes one after another.
        actions: ``(steps, act_dim)``, what the expert wants, also where noise was added to what was done.
        rewards: ``(steps,)``.
        lengths: ``(episodes,)``, int64; they sum to ``steps``.
        noise: ``(episodes,)``, standard deviation of the noise on the actions; 0 in at least one episode.
        random_rewards, random_lengths: of episodes with actions drawn from the action space.
        about: how it was made, JSON-like.

    Raises:
        ValueError: shapes that do not belong together, NaN or infinity, fewer than three episodes, none without noise.
    """

    environment: str
    observations: Tensor
    actions: Tensor
    rewards: Tensor
    lengths: Tensor
    noise: Tensor
    random_rewards: Tensor
    random_lengths: Tensor
    about: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        dims = {"observations": 2, "actions": 2}
        for name, tensor in self.tensors().items():
            if tensor.dim() != dims.get(name, 1) or not tensor.numel() or not torch.isfinite(tensor).all():
                found = f"shape {tuple(tensor.shape)}" + (
                    "" if torch.isfinite(tensor).all() else " with NaN or infinity"
                )
                raise ValueError(f"{name} must be finite, not empty, of {dims.get(name, 1)} dimensions, got {found}")
        for name, lengths, rewards in (
            ("lengths", self.lengths, self.rewards),
            ("random_lengths", self.random_lengths, self.random_rewards),
        ):
            if lengths.is_floating_point() or lengths.min() < 1 or int(lengths.sum()) != len(rewards):
                raise ValueError(f"{name} must be positive integers that sum to {len(rewards)}")
        if not len(self.observations) == len(self.actions) == len(self.rewards):
            counts = f"{len(self.observations)}, {len(self.actions)} and {len(self.rewards)}"
            raise ValueError(f"observations, actions and rewards must be as many, got {counts}")
        if len(self.noise) != len(self.lengths) or len(self.lengths) < 3 or bool((self.noise != 0).all()):
            raise ValueError(f"noise must be given for each of {len(self.lengths)} (at least 3) episodes, 0 for some")

    def tensors(self) -> dict[str, Tensor]:
        """All that is numbers, by name."""
        return {name: value for name, value in vars(self).items() if isinstance(value, Tensor)}

    def expert_return(self, steps: int) -> float:
        """The expert's mean return over the first ``steps`` of its episodes without noise."""
        returns = _returns(self.rewards, self.lengths, steps)
        return float(returns[self.noise == 0].mean())

    def random_return(self, steps: int) -> float:
        """A random policy's mean return over the first ``steps``."""
        return float(_returns(self.random_rewards, self.random_lengths, steps).mean())

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a safetensors file, whole or not at all. ``OSError`` if ``path`` cannot be written."""
        about = {"format": _FORMAT, "version": _VERSION, "environment": self.environment, "about": self.about}
        tensors = {name: tensor.contiguous() for name, tensor in self.tensors().items()}
        atomic_write(path, safetensors.torch.save(tensors, {"weit": json.dumps(about)}))

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Recording:
        """Read what ``save`` wrote; numbers come as float32.

        Raises:
            FileNotFoundError: no such file.
            ValueError: it is damaged, or holds something else.
        """
        path = Path(path)
        if not path.is_file():
            raise FileNotFoundError(f"no file {path} to read episodes from")
        try:
            with safe_open(path, "pt") as file:
                about = json.loads((file.metadata() or {}).get("weit", "{}"))
                if (about.get("format"), about.get("version")) != (_FORMAT, _VERSION):
                    raise ValueError(f"not of format {_FORMAT!r}, version {_VERSION}")
                tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118 (no mapping)
            numbers = {name: t.float() if t.is_floating_point() else t for name, t in tensors.items()}
            return cls(environment=about["environment"], about=about["about"], **numbers)
        except (ValueError, TypeError, KeyError, AttributeError, SafetensorError) as error:
            raise ValueError(f"{path} holds no whole recording of episodes: {error}") from error


def _returns(rewards: Tensor, lengths: Tensor, steps: int) -> Tensor:
    return torch.stack([episode[:steps].sum(dtype=torch.float64) for episode in rewards.split(lengths.tolist())])
