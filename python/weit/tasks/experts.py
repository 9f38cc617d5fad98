"""Records the episodes that policies are cloned from: ``python -m weit.tasks.experts --env Hopper-v5 --out file``.

An expert is trained with stable-baselines3's proximal policy optimisation, which needs a quarter of an hour of one core for
a million steps, and then watched: in some episodes undisturbed, in others with noise on what it does, so that they show how
it gets back on its feet.

Source: Schulman et al. 2017, "Proximal policy optimization algorithms" (arXiv 1707.06347), with the settings of Huang et
al. 2022, "CleanRL" (JMLR 23), and normalised observations and rewards; noise while recording, Laskey et al. 2017, "DART"
(arXiv 1703.09327).
"""

from __future__ import annotations

import argparse
import copy
import importlib.metadata
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from weit.engine.seeds import own_randomness
from weit.tasks.recordings import Recording
from weit.tasks.rollout import make_environment

Act = Callable[[np.ndarray], np.ndarray]
"""Observation ``(obs_dim,)`` → action ``(act_dim,)``."""

_PACKAGES = ("gymnasium", "mujoco", "stable-baselines3", "torch")
_ROLLOUT, _TOGETHER = 2048, 8  # steps between two updates, and environments that take them
_SEEDS = 1000  # episodes recorded start from here; those that score policies from elsewhere (control.py)


def train_expert(name: str, steps: int, *, seed: int = 0, evaluate_every: int = 40_960) -> Act:
    """The best policy of those met in ``steps`` steps of the environment, rounded up to 2048, without its exploration.

    Raises:
        ValueError: as ``make_environment``; no steps. RuntimeError: Gymnasium or stable-baselines3 is not installed.
    """
    if steps < 1:
        raise ValueError(f"steps must be positive, got {steps!r}")
    judge = make_environment(name)
    try:
        from stable_baselines3 import PPO
        from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize
    except ImportError as error:
        raise RuntimeError(f"training experts needs stable-baselines3: pip install .[control] ({error})") from error
    with own_randomness(seed):
        environments = VecNormalize(DummyVecEnv([lambda: make_environment(name)] * _TOGETHER))
        progress = [1.0]  # what is left of the training; stable-baselines3 knows of a single call to learn
        algorithm = PPO(
            "MlpPolicy",
            environments,
            learning_rate=lambda _: 3e-4 * progress[0],
            n_steps=_ROLLOUT // _TOGETHER,
            policy_kwargs={"optimizer_kwargs": {"fused": True, "eps": 1e-5}},
            seed=seed,
            device="cpu",
        )

        def act(observation: np.ndarray) -> np.ndarray:
            return algorithm.predict(environments.normalize_obs(observation), deterministic=True)[0]

        best: float = -np.inf
        while algorithm.num_timesteps < steps:
            progress[0] = 1 - algorithm.num_timesteps / steps
            algorithm.learn(min(evaluate_every, steps - algorithm.num_timesteps), reset_num_timesteps=False)
            score = float(np.mean([_episode(judge, act, seed)[2].sum() for seed in range(5)]))
            print(f"{algorithm.num_timesteps} steps: return {score:.0f}", flush=True)
            if score > best:
                best, kept = score, copy.deepcopy((algorithm.policy.state_dict(), environments.obs_rms))
        weights, environments.obs_rms = kept
        algorithm.policy.load_state_dict(weights)
    return act


def record(
    name: str,
    act: Act,
    *,
    clean: int = 10,
    noisy: int = 10,
    noise: float = 0.2,
    about: Mapping[str, Any] | None = None,
) -> Recording:
    """Watch an expert for ``clean`` episodes, and for ``noisy`` ones with normal noise of that deviation on its actions.

    Raises:
        ValueError: as ``make_environment`` and ``Recording``. RuntimeError: Gymnasium is not installed.
    """
    environment = make_environment(name)
    noises = [0.0] * clean + [noise] * noisy
    episodes = [_episode(environment, act, _SEEDS + i, std) for i, std in enumerate(noises)]
    environment.action_space.seed(_SEEDS)
    random = [_episode(environment, lambda _: environment.action_space.sample(), _SEEDS + i) for i in range(10)]
    observations, actions, rewards = (np.concatenate(parts) for parts in zip(*episodes, strict=True))
    half = torch.float16  # off by 0.05 % at most, which is little beside the noise, for half the size of the package
    return Recording(
        environment=name,
        observations=torch.from_numpy(observations).to(half),
        actions=torch.from_numpy(actions).to(half),
        rewards=torch.from_numpy(rewards).float(),
        lengths=torch.tensor([len(rewards) for _, _, rewards in episodes]),
        noise=torch.tensor(noises),
        random_rewards=torch.from_numpy(np.concatenate([rewards for _, _, rewards in random])).float(),
        random_lengths=torch.tensor([len(rewards) for _, _, rewards in random]),
        about={"versions": {package: importlib.metadata.version(package) for package in _PACKAGES}, **(about or {})},
    )


def _episode(environment: Any, act: Act, seed: int, noise: float = 0.0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Observations, what the policy wanted there, and rewards, of one episode."""
    random, space = np.random.default_rng(seed), environment.action_space
    observation, _ = environment.reset(seed=seed)
    rows, ended = [], False
    while not ended:
        action = act(observation)
        done = (action + noise * random.standard_normal(action.shape)).clip(space.low, space.high)
        following, reward, terminated, truncated, _ = environment.step(done.astype(space.dtype))
        rows.append((observation, action, float(reward)))
        observation, ended = following, terminated or truncated
    observations, actions, rewards = zip(*rows, strict=True)
    return np.stack(observations), np.stack(actions), np.array(rewards)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m weit.tasks.experts", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--env", default="Hopper-v5", help="Gymnasium's name of the environment")
    parser.add_argument("--steps", type=int, default=1_000_000, help="of the environment, to train for")
    parser.add_argument("--seed", type=int, default=0, help="of the training")
    parser.add_argument(
        "--noise", type=float, default=0.2, help="standard deviation of the noise in half of the episodes"
    )
    parser.add_argument("--episodes", type=int, default=10, help="recorded without noise, and as many with it")
    parser.add_argument("--out", type=Path, required=True, help="safetensors file to write")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)  # networks this small are slower on several
    about = {"trained": f"PPO, {options.steps} steps, seed {options.seed}"}
    try:
        act = train_expert(options.env, options.steps, seed=options.seed)
        count = {"clean": options.episodes, "noisy": options.episodes}
        recording = record(options.env, act, **count, noise=options.noise, about=about)
    except (ValueError, RuntimeError) as error:
        parser.error(str(error))
    recording.save(options.out)
    longest = int(recording.lengths.max())
    scores = recording.expert_return(longest), recording.random_return(longest)
    print(f"{options.out}: return of the expert {scores[0]:.0f}, of a random policy {scores[1]:.0f}")


if __name__ == "__main__":
    main()
