"""Policies for continuous control, from observations to actions: a residual MLP and a transformer over a short past."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from weit.models.checks import check_sizes
from weit.models.vit import Block


class Embedding(nn.Module):
    """Linear layer into the residual stream, `(..., features)` -> `(..., width)`.

    Its weight is `(features, width)`: like a position embedding it ends with the residual stream, which is how masks and
    rivals know a tensor's width without knowing its layer.
    """

    def __init__(self, features: int, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(features, width))
        self.bias = nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight + self.bias


class ResidualMLP(nn.Module):
    """Pre-norm block of two linear layers with a GELU between them, `(B, width)` -> `(B, width)`."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.fc2(F.gelu(self.fc1(self.norm(x))))


class MLPPolicy(nn.Module):
    """Residual MLP; observations `(B, obs_dim)` -> actions `(B, act_dim)`.

    Given windows `(B, T, obs_dim)`, as `TransformerPolicy` takes them, it acts on the last observation of each. Any first
    blocks and first features are a smaller policy.

    Args:
        obs_dim, act_dim: numbers in an observation and in an action.
        width, depth: features of the residual stream; number of blocks.
        mlp_ratio: hidden features of a block as a multiple of `width`.

    Raises:
        ValueError: a size that is not positive; when called, observations of another size.

    Source: the residual feed-forward networks with layer norm that were found to scale in control, e.g. Lee et al. 2024,
    "SimBa: Simplicity bias for scaling up parameters in deep reinforcement learning" (arXiv 2410.09754).
    """

    def __init__(
        self, obs_dim: int = 11, act_dim: int = 3, width: int = 64, depth: int = 3, mlp_ratio: float = 4.0
    ) -> None:
        super().__init__()
        hidden = check_sizes(mlp_ratio, obs_dim=obs_dim, act_dim=act_dim, width=width, depth=depth)
        self.obs_dim = obs_dim
        self.embed = Embedding(obs_dim, width)
        self.blocks = nn.ModuleList(ResidualMLP(width, hidden) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, act_dim)
        _reset_parameters(self)

    def example_inputs(self) -> tuple[Tensor, ...]:
        """One observation of zeros, `(1, obs_dim)`, where the parameters are."""
        return (self.head.weight.new_zeros(1, self.obs_dim),)

    def forward(self, observations: Tensor) -> Tensor:
        if observations.dim() == 3:
            observations = observations[:, -1]
        _check_observations(observations, (self.obs_dim,))
        x = self.embed(observations)
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))


class TransformerPolicy(nn.Module):
    """Causal transformer; windows of the last observations `(B, context, obs_dim)` -> actions `(B, act_dim)` for the last.

    The number of heads is `width / head_dim`, so that any first blocks and first features are a smaller policy.

    Args:
        obs_dim, act_dim: numbers in an observation and in an action.
        context: observations in a window, oldest first.
        width, depth: features of the residual stream; number of blocks.
        head_dim: features of one attention head; must divide `width`.
        mlp_ratio: hidden features of the MLP as a multiple of `width`.

    Raises:
        ValueError: a size that is not positive, `head_dim` not dividing `width`; when called, windows of another size.

    Source: after Chen et al. 2021, "Decision Transformer" (arXiv 2106.01345), on observations alone.
    """

    def __init__(
        self,
        obs_dim: int = 11,
        act_dim: int = 3,
        context: int = 8,
        width: int = 64,
        depth: int = 3,
        head_dim: int = 16,
        mlp_ratio: float = 4.0,
    ) -> None:
        super().__init__()
        sizes = {"obs_dim": obs_dim, "act_dim": act_dim, "context": context, "head_dim": head_dim}
        hidden = check_sizes(mlp_ratio, **sizes, width=width, depth=depth)
        self.obs_dim, self.context = obs_dim, context
        self.embed = Embedding(obs_dim, width)
        self.time_embed = nn.Parameter(torch.empty(1, context, width))
        self.blocks = nn.ModuleList(Block(width, head_dim, hidden, causal=True) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, act_dim)
        _reset_parameters(self)
        nn.init.trunc_normal_(self.time_embed, std=0.02)

    def example_inputs(self) -> tuple[Tensor, ...]:
        """One window of zeros, `(1, context, obs_dim)`, where the parameters are."""
        return (self.head.weight.new_zeros(1, self.context, self.obs_dim),)

    def forward(self, windows: Tensor) -> Tensor:
        _check_observations(windows, (self.context, self.obs_dim))
        x = self.embed(windows) + self.time_embed
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x[:, -1]))


def _check_observations(observations: Tensor, shape: tuple[int, ...]) -> None:
    if observations.shape[1:] != shape:
        expected = ", ".join(map(str, ("B", *shape)))
        raise ValueError(f"observations must be of shape ({expected}), got {tuple(observations.shape)}")


def _reset_parameters(model: nn.Module) -> None:
    """Xavier-uniform matrices and zero biases, as in `VisionTransformer`."""
    for module in model.modules():
        if isinstance(module, nn.Linear | Embedding):
            nn.init.xavier_uniform_(module.weight)
            nn.init.zeros_(module.bias)
