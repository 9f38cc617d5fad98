"""Lets torchvision, which timm and transformers import, be imported beside a CPU-only torch."""

from __future__ import annotations

from functools import cache
from importlib.util import find_spec
from pathlib import Path

import torch

_OPERATORS = ("nms", "qnms")


@cache
def declare() -> torch.library.Library | None:
    """Declare two operators of torchvision where its compiled library, a CUDA build, does not load.

    Its import stops at the fake kernels of these two; the models here call neither. The result is kept by the cache:
    dropping it would undo the declaration.
    """
    spec = find_spec("torchvision")
    if spec is None or torch.version.cuda is not None or not spec.submodule_search_locations:
        return None
    try:
        for library in Path(spec.submodule_search_locations[0]).glob("_C*"):
            torch.ops.load_library(library)
            return None
    except OSError:
        pass
    missing = [name for name in _OPERATORS if not hasattr(torch.ops.torchvision, name)]
    operators = torch.library.Library("torchvision", "FRAGMENT")
    for name in missing:
        operators.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    return operators
