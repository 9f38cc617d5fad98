"""Small ConvNets of Hugging Face, sized by width and depth like the package's own transformers."""

from __future__ import annotations

from typing import Any

_STAGES = 3


def resnet(width: int = 16, depth: int = 1, **others: Any) -> dict[str, Any]:
    """Configuration of a ResNet of three stages, ``width``, twice and four times as wide, of ``depth`` basic layers each.

    Source: He et al. 2016, "Deep Residual Learning for Image Recognition".
    """
    return {
        "embedding_size": width,
        "hidden_sizes": _widths(width),
        "depths": [depth] * _STAGES,
        "layer_type": "basic",
        **others,
    }


def convnext(width: int = 16, depth: int = 1, patch_size: int = 2, **others: Any) -> dict[str, Any]:
    """Configuration of a ConvNeXt of three stages, as ``resnet`` sizes them.

    ``layer_scale_init_value`` is that of small models trained for a short time; the 1e-6 of the paper keeps blocks idle
    for thousands of steps.

    Source: Liu et al. 2022, "A ConvNet for the 2020s".
    """
    return {
        "num_stages": _STAGES,
        "hidden_sizes": _widths(width),
        "depths": [depth] * _STAGES,
        "patch_size": patch_size,
        "layer_scale_init_value": 1.0,
        **others,
    }


def _widths(width: int) -> list[int]:
    return [width * 2**stage for stage in range(_STAGES)]
