"""A network of ours as the actor of stable-baselines3's actor-critic algorithms. Importing this needs stable-baselines3."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.policies import ActorCriticPolicy
from torch import Tensor, nn

_CRITIC_WIDTH = 64


class ActorPolicy(ActorCriticPolicy):
    """Actions around those of ``actor``, with a learned deviation; a small critic on the last observation of a window.

    Args:
        *arguments, **settings: as ``ActorCriticPolicy``.
        actor: windows ``(B, context, obs_dim)`` → means ``(B, act_dim)``; it is trained as the object it is.
    """

    def __init__(self, *arguments: Any, actor: nn.Module, **settings: Any) -> None:
        self._networks = (actor,)  # in a tuple: modules can be registered only once the base class is initialised
        super().__init__(*arguments, features_extractor_class=_Untouched, ortho_init=False, **settings)

    def _build_mlp_extractor(self) -> None:
        observations, actions = self.observation_space.shape[-1], self.action_space.shape[0]
        self.mlp_extractor = _ActorAndCritic(self._networks[0], observations, actions)

    def _build(self, lr_schedule: Any) -> None:
        super()._build(lr_schedule)
        self.action_net = nn.Identity()  # the actor gives actions, not features to make some of
        self.optimizer = self.optimizer_class(self.parameters(), lr=lr_schedule(1), **self.optimizer_kwargs)


class BeforeRollouts(BaseCallback):
    """Calls ``function(steps of the environment so far)`` before each rollout."""

    def __init__(self, function: Callable[[int], None]) -> None:
        super().__init__()
        self._function = function

    def _on_rollout_start(self) -> None:
        self._function(self.num_timesteps)

    def _on_step(self) -> bool:
        return True


class _Untouched(nn.Module):
    """In place of the extractor that would flatten a window."""

    features_dim = 1  # not used: our networks know their sizes

    def __init__(self, observation_space: Any) -> None:
        super().__init__()

    def forward(self, windows: Tensor) -> Tensor:
        return windows


class _ActorAndCritic(nn.Module):
    """What stable-baselines3 takes for the layers before the heads."""

    def __init__(self, actor: nn.Module, obs_dim: int, act_dim: int) -> None:
        super().__init__()
        self.actor = actor
        self.critic = nn.Sequential(
            nn.Linear(obs_dim, _CRITIC_WIDTH), nn.Tanh(), nn.Linear(_CRITIC_WIDTH, _CRITIC_WIDTH), nn.Tanh()
        )
        self.latent_dim_pi, self.latent_dim_vf = act_dim, _CRITIC_WIDTH

    def forward(self, windows: Tensor) -> tuple[Tensor, Tensor]:
        return self.forward_actor(windows), self.forward_critic(windows)

    def forward_actor(self, windows: Tensor) -> Tensor:
        return self.actor(windows)

    def forward_critic(self, windows: Tensor) -> Tensor:
        return self.critic(windows[:, -1])
