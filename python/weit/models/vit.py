"""A small vision transformer whose every weight matrix is a plain `nn.Linear` of its own."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from weit.models.checks import check_sizes


class Attention(nn.Module):
    """Multi-head self-attention, `(B, T, width)` -> `(B, T, width)`; heads are consecutive slices of the width.

    With `causal` each position attends to itself and those before it.
    """

    def __init__(self, width: int, head_dim: int, causal: bool = False) -> None:
        super().__init__()
        self.head_dim, self.causal = head_dim, causal
        self.q = nn.Linear(width, width)
        self.k = nn.Linear(width, width)
        self.v = nn.Linear(width, width)
        self.o = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (
            project(x).unflatten(-1, (-1, self.head_dim)).transpose(1, 2) for project in (self.q, self.k, self.v)
        )
        return self.o(F.scaled_dot_product_attention(q, k, v, is_causal=self.causal).transpose(1, 2).flatten(2))


class MLP(nn.Module):
    """Two linear layers with a GELU between them, `(B, T, width)` -> `(B, T, width)`."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class Block(nn.Module):
    """Pre-norm transformer block: attention, then the MLP, each added to the residual stream."""

    def __init__(self, width: int, head_dim: int, hidden: int, causal: bool = False) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attn = Attention(width, head_dim, causal)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = MLP(width, hidden)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class VisionTransformer(nn.Module):
    """Vision transformer for small images; images `(B, in_chans, img_size, img_size)` -> logits `(B, num_classes)`.

    Queries, keys and values are separate layers and the number of heads is `width / head_dim`, so that the first
    `w` features of every layer are the layer of a narrower model with the same heads. Tokens are averaged before the
    head, so nothing but the position embedding depends on the image size.

    Args:
        img_size, patch_size: side of the square image and of the square patches it is cut into.
        width, depth: features of the residual stream; number of blocks.
        head_dim: features of one attention head; must divide `width`.
        mlp_ratio: hidden features of the MLP as a multiple of `width`.

    Raises:
        ValueError: a size that is not positive, `patch_size` not dividing `img_size`, `head_dim` not dividing `width`.

    Source: Dosovitskiy et al. 2021, with the pre-norm block and the mean pooling of Beyer et al. 2022.
    """

    def __init__(
        self,
        img_size: int = 8,
        patch_size: int = 2,
        in_chans: int = 1,
        num_classes: int = 10,
        width: int = 64,
        depth: int = 6,
        head_dim: int = 16,
        mlp_ratio: float = 4.0,
    ) -> None:
        super().__init__()
        sizes = {"img_size": img_size, "patch_size": patch_size, "in_chans": in_chans, "num_classes": num_classes}
        hidden = check_sizes(mlp_ratio, **sizes, width=width, depth=depth, head_dim=head_dim)
        self.patch_embed = nn.Conv2d(in_chans, width, patch_size, patch_size)
        self.pos_embed = nn.Parameter(torch.empty(1, (img_size // patch_size) ** 2, width))
        self.blocks = nn.ModuleList(Block(width, head_dim, hidden) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, num_classes)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Xavier-uniform matrices and zero biases, as in the ViT authors' own code.

        On digits, after 200 steps at each one's best learning rate, this reached 87 % where the default of `nn.Linear`
        reached 76 % and a normal of standard deviation 0.02 reached 49 %: what is compared with `scratch` should
        have to beat the good one.
        """
        nn.init.trunc_normal_(self.pos_embed, std=0.02)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)

    def forward(self, images: Tensor) -> Tensor:
        x = self.patch_embed(images).flatten(2).transpose(1, 2) + self.pos_embed
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x).mean(1))
