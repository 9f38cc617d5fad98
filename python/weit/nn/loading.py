"""A state dict that a module refuses leaves it as it was; torch alone would have copied whatever fits by then."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn


class LoadsWhole(nn.Module):
    """Base of modules whose ``load_state_dict`` changes all that it is asked to change, or nothing."""

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        held: list[Any] = [
            (store, name, tensor, tensor.detach().clone())
            for module in self.modules()
            for store in (module._parameters, module._buffers)
            for name, tensor in store.items()
            if tensor is not None
        ]
        try:
            return super().load_state_dict(state_dict, strict, assign)
        except BaseException:
            with torch.no_grad():
                for store, name, tensor, value in held:
                    tensor.copy_(value)
                    store[name] = tensor
            raise
