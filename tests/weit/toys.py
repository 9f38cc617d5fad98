"""Small models and data that the training tests share: seconds for all of them together."""

from __future__ import annotations

import torch
from torch import Tensor, nn

import weit
from weit.models import VisionTransformer

SPEC = {"templates": 4, "template_shape": (8, 8)}


def vit(width: int = 32, depth: int = 3, classes: int = 4) -> VisionTransformer:
    """A ViT on 4×4 images, heads of 8."""
    return VisionTransformer(
        img_size=4, patch_size=2, in_chans=1, num_classes=classes, width=width, depth=depth, head_dim=8
    )


def images(count: int = 64, classes: int = 4, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Noisy images of ``classes`` patterns: learnable in a few dozen steps."""
    generator = torch.Generator().manual_seed(seed)
    patterns = torch.randn(classes, 1, 4, 4, generator=torch.Generator().manual_seed(1))
    labels = torch.arange(count) % classes
    return patterns[labels] + 0.3 * torch.randn(count, 1, 4, 4, generator=generator), labels


def accuracy(model: nn.Module, seed: int = 9) -> float:
    """On images not trained on."""
    inputs, labels = images(200, seed=seed)
    with torch.no_grad():
        return float((model.eval()(inputs).argmax(-1) == labels).float().mean())


def pretrained(steps: int = 60) -> weit.TemplateBank:
    """A bank of 32×3, also trained at 16×2."""
    config = weit.PretrainConfig(steps=steps, batch_size=32, spec=SPEC)
    torch.manual_seed(0)
    return weit.pretrain(vit(), images(), config, smaller=[vit(16, 2)], progress=False)
