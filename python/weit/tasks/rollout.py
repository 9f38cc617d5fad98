"""Policies at work: Gymnasium environments, and the returns of a policy over seeded episodes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor


def make_environment(name: str) -> Any:
    """The Gymnasium environment ``name``, for policies that map vectors to vectors.

    Raises:
        ValueError: there is none of that name, or its observations or actions are no vectors of numbers.
        RuntimeError: Gymnasium, or what simulates the environment, is not installed.
    """
    try:
        import gymnasium
    except ImportError as error:
        raise RuntimeError(f"control needs Gymnasium: pip install .[control] ({error})") from error
    try:
        with _quiet():
            environment = gymnasium.make(name, disable_env_checker=True)
    except (gymnasium.error.DependencyNotInstalled, ImportError) as error:
        raise RuntimeError(f"{name} needs its simulator: pip install .[control] ({error})") from error
    except gymnasium.error.Error as error:
        raise ValueError(f"no environment {name!r}: {error}") from error
    for what, space in (("observations", environment.observation_space), ("actions", environment.action_space)):
        if not isinstance(space, gymnasium.spaces.Box) or len(space.shape) != 1:
            raise ValueError(f"{name} must have vectors of numbers as {what}, but has {space}")
    return environment


@contextmanager
def _quiet() -> Iterator[None]:
    """Drops MuJoCo's warnings while a model is built: of Gymnasium's own, and each into a file in the working folder."""
    try:
        import mujoco
    except ImportError:
        yield
        return
    before = mujoco.get_mju_user_warning()
    mujoco.set_mju_user_warning(lambda message: None)
    try:
        yield
    finally:
        mujoco.set_mju_user_warning(before)


def returns(
    act: Callable[[Tensor], Tensor],
    environments: Sequence[Any],
    seeds: Sequence[int],
    *,
    mean: Tensor,
    std: Tensor,
    context: int,
    steps: int,
) -> list[float]:
    """Sum of the rewards of one episode in each environment, all of them side by side.

    Args:
        act: windows ``(B, context, obs_dim)`` of the last normalised observations → actions ``(B, act_dim)``. Before there
            are ``context`` of them, the first one fills in.
        environments, seeds: as many of each; an episode starts from its seed.
        mean, std: ``(obs_dim,)``, of the observations; windows are where these are.
        steps: after which an episode is cut.
    """
    space = environments[0].action_space
    first = _normalised([env.reset(seed=seed)[0] for env, seed in zip(environments, seeds, strict=True)], mean, std)
    windows = first[:, None].repeat(1, context, 1)
    totals, running = [0.0] * len(environments), list(range(len(environments)))
    for _ in range(steps):
        # What a diverged model answers must not reach the simulator, which would stop at NaN.
        actions = act(windows).nan_to_num(0.0).cpu().numpy().clip(space.low, space.high)
        observations, rows = [], []
        for row, (i, action) in enumerate(zip(running, actions, strict=True)):
            observation, reward, terminated, truncated, _ = environments[i].step(action)
            totals[i] += float(reward)
            if not (terminated or truncated):
                observations.append(observation)
                rows.append(row)
        running = [running[row] for row in rows]
        if not running:
            break
        windows = torch.cat([windows[rows, 1:], _normalised(observations, mean, std)[:, None]], 1)
    return totals


def _normalised(observations: list[np.ndarray], mean: Tensor, std: Tensor) -> Tensor:
    return (torch.tensor(np.stack(observations), dtype=mean.dtype, device=mean.device) - mean) / std
