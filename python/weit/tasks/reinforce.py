"""Reinforcement learning of a policy that was initialised otherwise: stable-baselines3's PPO around our network."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from weit.engine.freezing import frozen
from weit.engine.seeds import own_randomness
from weit.tasks.rollout import make_environment, returns
from weit_kernels.shapes import as_int

_SEEDS = 30_000  # of the first episode that a point of the curve is measured on
_DISCOUNT = 0.99


class Point(NamedTuple):
    """Attributes: steps of the environment so far; mean return of the policy without exploration."""

    steps: int
    score: float


def fine_tune(
    policy: nn.Module,
    name: str,
    steps: int,
    *,
    mean: Tensor,
    std: Tensor,
    context: int = 1,
    seed: int = 0,
    evaluate_every: int = 10_000,
    episodes: int = 5,
    episode_steps: int = 1000,
    critic_first: int = 8192,
    log_std: float = -1.5,
    lr: float = 1e-4,
    rollout: int = 2048,
    batch_size: int = 64,
    target_kl: float | None = 0.02,
    **settings: Any,
) -> list[Point]:
    """Train ``policy`` by proximal policy optimisation, in place.

    Actions are drawn from a normal distribution around what the policy answers, with a learned deviation; a small network
    of its own, fresh, estimates the value of a state. Rewards are scaled by the deviation of returns so far. The same for
    the same arguments and number of threads.

    Args:
        policy: windows ``(B, context, obs_dim)`` → actions ``(B, act_dim)``, such as ``MLPPolicy`` or
            ``TransformerPolicy``, on the CPU.
        name: of a Gymnasium environment.
        steps: of the environment, rounded up to whole rollouts.
        mean, std: ``(obs_dim,)``, of observations; the policy sees ``(x - mean) / std``. Those of ``Control``, for one that
            was cloned.
        context: observations in a window; that of the policy.
        evaluate_every: steps of the environment between points of the curve, rounded up to whole rollouts.
        episodes, episode_steps: how many episodes, and how much of each, a point is the mean of.
        critic_first: steps of the environment, of ``steps``, in which the critic alone learns: what a fresh one says would
            lead a good policy astray.
        log_std: of the exploration, to start with.
        lr, rollout, batch_size, target_kl, **settings: of PPO: its learning rate, which falls linearly, to nearly 0 in the
            last update; the steps between two updates, items in a step of the optimiser, how far an update may go; others
            as stable-baselines3 names them.

    Returns:
        The learning curve, from before the first step to after the last.

    Raises:
        ValueError: no such environment, a number out of range, or sizes that the policy does not fit; it is unchanged then.
        RuntimeError: Gymnasium, the simulator or stable-baselines3 is not installed.

    Source: Schulman et al. 2017, "Proximal policy optimization algorithms" (arXiv 1707.06347).
    """
    counts = {"steps": steps, "evaluate_every": evaluate_every, "episodes": episodes, "episode_steps": episode_steps}
    for argument, value in counts.items():
        number = as_int(value)
        if number is None or number < 1:
            raise ValueError(f"{argument} must be a positive int, got {value!r}")
    judges = [make_environment(name) for _ in range(episodes)]
    try:
        from stable_baselines3 import PPO

        from weit.tasks.actor_critic import ActorPolicy, BeforeRollouts
    except ImportError as error:
        raise RuntimeError(f"fine-tuning needs stable-baselines3: pip install .[control] ({error})") from error
    _check(policy, judges[0], mean, std, context)

    @torch.no_grad()
    def score() -> float:
        seeds = range(_SEEDS, _SEEDS + episodes)
        return float(np.mean(returns(policy, judges, seeds, mean=mean, std=std, context=context, steps=episode_steps)))

    with own_randomness(seed):
        algorithm = PPO(
            ActorPolicy,
            _windowed(make_environment(name), mean, std, context),
            learning_rate=lambda left: lr * min(1.0, left + rollout / steps),  # what is left after the rollout it is of
            n_steps=rollout,
            batch_size=batch_size,
            target_kl=target_kl,
            gamma=_DISCOUNT,
            policy_kwargs={"actor": policy, "log_std_init": log_std},
            seed=seed,
            device="cpu",
            **settings,
        )
        curve = [Point(0, score())]
        with ExitStack() as actor:
            actor.enter_context(frozen([*policy.parameters(), algorithm.policy.log_std]))

            def before_rollout(done: int) -> None:
                if done >= critic_first:
                    actor.close()
                if done >= curve[-1].steps + evaluate_every:
                    curve.append(Point(done, score()))

            algorithm.learn(steps, callback=BeforeRollouts(before_rollout))
        curve.append(Point(algorithm.num_timesteps, score()))
    return curve


def _windowed(environment: Any, mean: Tensor, std: Tensor, context: int) -> Any:
    """The environment with windows of normalised observations, as ``rollout.returns`` makes them, and scaled rewards."""
    from gymnasium import spaces, wrappers

    center, spread = mean.numpy(), std.numpy()
    space = spaces.Box(-np.inf, np.inf, center.shape, np.float32)
    normalised = wrappers.TransformObservation(
        environment, lambda observation: (observation.astype(np.float32) - center) / spread, space
    )
    windows = wrappers.FrameStackObservation(normalised, context, padding_type="reset")
    return wrappers.NormalizeReward(windows, gamma=_DISCOUNT)


def _check(policy: nn.Module, environment: Any, mean: Tensor, std: Tensor, context: int) -> None:
    """Raise ``ValueError`` unless statistics, windows and policy fit the environment."""
    observations, actions = environment.observation_space.shape, environment.action_space.shape
    if mean.shape != observations or std.shape != observations:
        found = f"{tuple(mean.shape)} and {tuple(std.shape)}"
        raise ValueError(f"mean and std must be of shape {observations}, as observations are, got {found}")
    with torch.no_grad():
        answers = policy(torch.zeros(1, context, *observations))
    if answers.shape[1:] != actions:
        raise ValueError(f"policy must answer with {actions[0]} numbers, as an action has, got {answers.shape[-1]}")
