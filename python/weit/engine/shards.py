"""Tensors of which each process may hold only its part: torch's ``DTensor``, whose import takes a second and is put off."""

from __future__ import annotations

from torch import Tensor


def is_part(tensor: Tensor) -> bool:
    """Whether this process holds a part of ``tensor`` only."""
    return hasattr(tensor, "full_tensor")


def whole(tensor: Tensor) -> Tensor:
    """``tensor`` without its history, put together if it is in parts; every process has to call this then."""
    tensor = tensor.detach()
    return tensor.full_tensor() if is_part(tensor) else tensor  # type: ignore[attr-defined]


def own_part(tensor: Tensor) -> Tensor:
    """``tensor`` without its history; of one in parts, the part that is here."""
    tensor = tensor.detach()
    return tensor.to_local() if is_part(tensor) else tensor  # type: ignore[attr-defined]


def placed_like(target: Tensor, full: Tensor) -> Tensor:
    """``full`` on the device of ``target``; this process's part of it if that is in parts."""
    full = full.to(target.device)
    if not is_part(target):
        return full
    from torch.distributed.tensor import DTensor, distribute_tensor

    assert isinstance(target, DTensor)
    return distribute_tensor(full, target.device_mesh, target.placements, src_data_rank=None)
