"""Embodied control: policies cloned from an expert's episodes, and scored by what they earn in the environment."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from weit.tasks.recordings import Recording
from weit.tasks.rollout import make_environment, returns
from weit.tasks.task import SPLITS, Metric, Size, Task, check_split, evaluating

MODELS = ("mlp", "transformer")
_EPISODES = Path(__file__).with_name("episodes")
_CONTEXT = 8  # observations in a window
_HELD_OUT = 0.15  # share of the episodes in each of validation and test, one at least
_SEEDS = {"validation": 10_000, "test": 20_000}  # of the first episode that scores a policy; recorded ones have others
_FULL, _QUICK = 10, 3  # episodes
_STEPS = 1000  # after which they are cut


class Control(Task):
    """Cloning an expert: windows of normalised observations ``(context, obs_dim)`` → its action ``(act_dim,)``.

    The score is the return in the environment between that of a random policy, 0, and the expert's, 1. It is the mean
    over ten episodes from fixed seeds, other ones for validation and test; a quick one takes three. Episodes are cut after
    1,000 steps, over which expert and random policy are measured too.

    Args:
        recording: episodes of the expert; split by episode into train, validation and test, always alike.

    Attributes:
        mean, std: ``(obs_dim,)``, of the observations in the training episodes; every policy sees ``(x - mean) / std``.
        context: observations in a window, oldest first. At the start of an episode the first one fills in.

    Raises:
        ValueError: there is no such environment, its observations or actions are not those of the episodes, or these are
            of no expert.
        RuntimeError: Gymnasium or the simulator is not installed.
    """

    family = "control"
    model = "mlp"
    metrics = (
        Metric("return", "return, % of the expert's", higher=True, scale=100, digits=1),
        Metric("loss", "action error", higher=False, digits=4),
    )
    loss = staticmethod(F.mse_loss)
    distance = staticmethod(F.mse_loss)

    def __init__(self, recording: Recording) -> None:
        self.name, self.recording, self.context = recording.environment, recording, _CONTEXT
        self._check_environment()
        if not recording.expert_return(_STEPS) > recording.random_return(_STEPS):
            raise ValueError(f"episodes of {self.name} must earn more than a random policy, as an expert's do")
        observations, actions = (
            part.split(recording.lengths.tolist()) for part in (recording.observations, recording.actions)
        )
        parts = _split(len(recording.lengths))
        seen = torch.cat([observations[i] for i in parts["train"]]).double()
        # A reading that hardly moves, such as a blocked joint, is left small.
        self.mean, self.std = seen.mean(0).float(), seen.std(0, correction=0).clamp_min(1e-3).float()
        windows = [_windows((each - self.mean) / self.std, self.context) for each in observations]
        self._splits = {
            split: TensorDataset(torch.cat([windows[i] for i in chosen]), torch.cat([actions[i] for i in chosen]))
            for split, chosen in parts.items()
        }
        self.train = self._splits["train"]

    def arguments(self, model: str, size: Size) -> dict[str, Any]:
        if model not in MODELS:
            raise ValueError(f"a model for control must be one of {', '.join(MODELS)}, got {model!r}")
        sizes = {"obs_dim": self.recording.observations.shape[1], "act_dim": self.recording.actions.shape[1]}
        return {**sizes, **({"context": self.context} if model == "transformer" else {}), **size}

    def evaluate(self, model: nn.Module, split: str, *, quick: bool = False) -> dict[str, float]:
        check_split(split)
        episodes = _QUICK if quick else _FULL
        seeds = range(_SEEDS[split], _SEEDS[split] + episodes)
        with evaluating(model) as device:
            scale = {"mean": self.mean.to(device), "std": self.std.to(device)}
            environments = self._environments[:episodes]
            earned = returns(model, environments, seeds, **scale, context=self.context, steps=_STEPS)
            error = self._error(model, self._splits[split], device)
        return {"return": self.share(sum(earned) / episodes), "loss": error}

    def share(self, earned: float) -> float:
        """A return as a share of the expert's: 0 for a random policy's, 1 for the expert's."""
        random, expert = self.recording.random_return(_STEPS), self.recording.expert_return(_STEPS)
        return (earned - random) / (expert - random)

    def _error(self, model: nn.Module, held_out: TensorDataset, device: torch.device, batch_size: int = 512) -> float:
        """Mean loss over the steps of held-out episodes."""
        total = 0.0
        for batch in zip(*(part.split(batch_size) for part in held_out.tensors), strict=True):
            windows, actions = (part.to(device) for part in batch)
            total += float(self.loss(model(windows), actions)) * len(actions)
        return total / len(held_out)

    @cached_property
    def _environments(self) -> list[Any]:
        return [make_environment(self.name) for _ in range(_FULL)]

    def _check_environment(self) -> None:
        environment = make_environment(self.name)
        for what, space, tensor in (
            ("observations", environment.observation_space, self.recording.observations),
            ("actions", environment.action_space, self.recording.actions),
        ):
            if space.shape != tensor.shape[1:]:
                sizes = f"{space.shape[0]} numbers in {self.name} and {tensor.shape[1]} in the episodes"
                raise ValueError(f"episodes must be of the environment as it is installed, but {what} have {sizes}")
        environment.close()


def load(name: str, root: Path | None = None) -> Control:
    """The task of cloning an expert of the environment ``name``.

    Args:
        name: of an environment whose episodes come with the package, or of any other with ``root``.
        root: file of episodes that ``python -m weit.tasks.experts`` recorded.

    Raises:
        ValueError: no episodes of that environment, a damaged or foreign file; see also ``Control``.
        FileNotFoundError: there is no file ``root``.
        RuntimeError: Gymnasium or the simulator is not installed.
    """
    shipped = {path.stem: path for path in sorted(_EPISODES.glob("*.safetensors"))}
    if root is None and name not in shipped:
        make_environment(name)  # a name that is misspelt is said to be
        raise ValueError(
            f"episodes come with the package for {', '.join(shipped)}, not for {name}: record an expert's with "
            f"python -m weit.tasks.experts --env {name}, and give the file as root"
        )
    recording = Recording.load(shipped[name] if root is None else root)
    if recording.environment != name:
        raise ValueError(f"{root} holds episodes of {recording.environment}, not of {name}")
    return Control(recording)


def _windows(observations: Tensor, context: int) -> Tensor:
    """For each step of an episode ``(steps, obs_dim)`` the last ``context`` observations, ``(steps, context, obs_dim)``."""
    padded = torch.cat([observations[:1].expand(context - 1, -1), observations])
    return padded.unfold(0, context, 1).mT.contiguous()


def _split(episodes: int) -> dict[str, list[int]]:
    """Which episodes are for what, always alike."""
    order = torch.randperm(episodes, generator=torch.Generator().manual_seed(0)).tolist()
    count = max(1, round(_HELD_OUT * episodes))
    held_out = {split: order[i * count : (i + 1) * count] for i, split in enumerate(SPLITS)}
    return {"train": order[len(SPLITS) * count :], **held_out}
