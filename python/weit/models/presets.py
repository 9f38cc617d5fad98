"""Small ConvNets of Hugging Face, sized by width and depth like the package's own transformers."""

from __future__ import annotations

from typing import Any

from weit.models.checks import check_positive


def resnet(width: int = 16, depth: int = 1, stages: int = 3, **others: Any) -> dict[str, Any]:
    """Configuration of a ResNet of so many stages, each twice as wide as the one before, of ``depth`` basic layers each.

    Width 64, depth 2 and four stages are ResNet-18. Raises ``ValueError`` for a size that is no positive integer.

    Source: He et al. 2016, "Deep Residual Learning for Image Recognition".
    """
    check_positive(width=width, depth=depth, stages=stages)
    return {
        "embedding_size": width,
        "hidden_sizes": _widths(width, stages),
        "depths": [depth] * stages,
        "layer_type": "basic",
        **others,
    }


def convnext(width: int = 16, depth: int = 1, patch_size: int = 2, stages: int = 3, **others: Any) -> dict[str, Any]:
    """Configuration of a ConvNeXt, sized as ``resnet`` is.

    ``layer_scale_init_value`` is that of small models trained for a short time; the 1e-6 of the paper keeps blocks idle
    for thousands of steps.

    Source: Liu et al. 2022, "A ConvNet for the 2020s".
    """
    check_positive(width=width, depth=depth, stages=stages)
    return {
        "num_stages": stages,
        "hidden_sizes": _widths(width, stages),
        "depths": [depth] * stages,
        "patch_size": patch_size,
        "layer_scale_init_value": 1.0,
        **others,
    }


def _widths(width: int, stages: int) -> list[int]:
    return [width * 2**stage for stage in range(stages)]
