"""A small diffusion transformer whose every weight matrix is a plain `nn.Linear` of its own.

Not diffusers' `DiTTransformer2DModel`: that has an embedding of time and label in every block, as many numbers as the
attention and no part of any bank; its fixed positions at one width are no part of those at another; and its import takes
transformers, peft and torchvision along. `weit.rules` knows its layers all the same.
"""

from __future__ import annotations

from math import ceil

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from weit.models.checks import check_sizes
from weit.models.policy import Embedding
from weit.models.vit import MLP, Attention

_FREQUENCIES = 128  # sines, and as many cosines, of the time step


class TimeEmbedding(nn.Module):
    """Two linear layers on sines and cosines of the time step, `(B,)` -> `(B, width)`."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc1 = Embedding(2 * _FREQUENCIES, width)
        self.fc2 = nn.Linear(width, width)

    def forward(self, timesteps: Tensor) -> Tensor:
        rates = 1e4 ** -(torch.arange(_FREQUENCIES, device=timesteps.device) / _FREQUENCIES)
        angles = timesteps[:, None] * rates
        return self.fc2(F.silu(self.fc1(torch.cat([angles.cos(), angles.sin()], -1).to(self.fc1.weight.dtype))))


class DiTBlock(nn.Module):
    """Transformer block that a condition shifts, scales and gates, `(B, T, width)`, `(B, width)` -> `(B, T, width)`."""

    def __init__(self, width: int, head_dim: int, hidden: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, eps=1e-6, elementwise_affine=False)
        self.modulation = nn.Linear(width, 6 * width)
        self.attn = Attention(width, head_dim)
        self.mlp = MLP(width, hidden)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        shift1, scale1, gate1, shift2, scale2, gate2 = self.modulation(condition)[:, None].chunk(6, -1)
        x = x + gate1 * self.attn(self.norm(x) * (1 + scale1) + shift1)
        return x + gate2 * self.mlp(self.norm(x) * (1 + scale2) + shift2)


class DiT(nn.Module):
    """Class-conditional diffusion transformer; noisy images `(B, in_chans, img_size, img_size)`, time steps `(B,)` and
    labels `(B,)` -> the noise in the images, of their shape.

    Labels go from 0 to `num_classes`; the last one stands for an image of any class, as classifier-free guidance needs.
    Positions are learned, from a start of sines and cosines. Any first blocks and first features are a smaller DiT.

    Args:
        img_size, patch_size: side of the square image and of the square patches it is cut into.
        in_chans, num_classes: channels of the image; classes, without the one for any class.
        width, depth: features of the residual stream; number of blocks.
        head_dim: features of one attention head; must divide `width`.
        mlp_ratio: hidden features of the MLP as a multiple of `width`.

    Raises:
        ValueError: a size that is not positive, `patch_size` not dividing `img_size`, `head_dim` not dividing `width`.

    Source: Peebles & Xie 2023, "Scalable diffusion models with transformers" (arXiv 2212.09748), the adaLN-Zero variant.
    """

    def __init__(
        self,
        img_size: int = 8,
        patch_size: int = 2,
        in_chans: int = 1,
        num_classes: int = 10,
        width: int = 64,
        depth: int = 4,
        head_dim: int = 16,
        mlp_ratio: float = 4.0,
    ) -> None:
        super().__init__()
        sizes = {"img_size": img_size, "patch_size": patch_size, "in_chans": in_chans, "num_classes": num_classes}
        hidden = check_sizes(mlp_ratio, **sizes, width=width, depth=depth, head_dim=head_dim)
        self.img_size, self.patch_size, self.in_chans = img_size, patch_size, in_chans
        self.patch_embed = nn.Conv2d(in_chans, width, patch_size, patch_size)
        self.pos_embed = nn.Parameter(_positions(img_size // patch_size, width))
        self.time_embed = TimeEmbedding(width)
        self.label_embed = nn.Embedding(num_classes + 1, width)
        self.blocks = nn.ModuleList(DiTBlock(width, head_dim, hidden) for _ in range(depth))
        self.norm = nn.LayerNorm(width, eps=1e-6, elementwise_affine=False)
        self.modulation = nn.Linear(width, 2 * width)
        self.head = nn.Linear(width, in_chans * patch_size**2)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """As the DiT authors do: every block starts as the identity, and the noise predicted first is zero."""
        for name, module in self.named_modules():
            if isinstance(module, nn.Linear):
                starts_idle = name == "head" or name.endswith("modulation")
                (nn.init.zeros_ if starts_idle else nn.init.xavier_uniform_)(module.weight)
                nn.init.zeros_(module.bias)
        nn.init.xavier_uniform_(self.patch_embed.weight.data.flatten(1))
        nn.init.zeros_(self.patch_embed.bias)  # type: ignore[arg-type]
        for weight in (self.time_embed.fc1.weight, self.time_embed.fc2.weight, self.label_embed.weight):
            nn.init.normal_(weight, std=0.02)

    def example_inputs(self) -> tuple[Tensor, ...]:
        """One image, time step and label of zeros, where the parameters are."""
        images = self.pos_embed.new_zeros(1, self.in_chans, self.img_size, self.img_size)
        index = torch.zeros(1, dtype=torch.long, device=images.device)
        return images, index, index

    def forward(self, noisy: Tensor, timesteps: Tensor, labels: Tensor) -> Tensor:
        x = self.patch_embed(noisy).flatten(2).transpose(1, 2) + self.pos_embed
        condition = F.silu(self.time_embed(timesteps) + self.label_embed(labels))
        for block in self.blocks:
            x = block(x, condition)
        shift, scale = self.modulation(condition)[:, None].chunk(2, -1)
        x = self.head(self.norm(x) * (1 + scale) + shift)
        side = self.img_size // self.patch_size
        return F.pixel_shuffle(x.transpose(1, 2).unflatten(2, (side, side)), self.patch_size)


def _positions(side: int, width: int) -> Tensor:
    """Sines and cosines of row and column, `(1, side², width)`; every four features are those of one frequency."""
    rates = 1e4 ** -(torch.arange(ceil(width / 4)) * 4 / width)
    angles = torch.arange(side)[:, None] * rates
    waves = torch.stack([angles.sin(), angles.cos()], -1)
    rows, columns = waves[:, None].expand(-1, side, -1, -1), waves[None].expand(side, -1, -1, -1)
    return torch.cat([rows, columns], -1).reshape(1, side**2, -1)[..., :width]
