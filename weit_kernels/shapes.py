"""Sizes of a Kronecker-sum operator and every check of its arguments.

All other modules trust what passed here, so each message is written once: it names the argument, what was given and
what was expected.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import prod
from operator import index
from typing import Any

import torch
from torch import Tensor

LAYOUTS = ("block", "interleaved")
# Up to so many rows a layer is bound by its launch and by reading the factors once, more by multiplying: not measured.
FEW_ROWS = 64
PATHS = ("auto", "templates_first", "scalers_first", "panel", "on_the_fly")
BACKENDS = ("auto", "torch", "cpp", "triton", "cuda")
DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


@dataclass(frozen=True)
class KronShape:
    """Sizes of ``W = Σ_t kron(S_t, T_t)``: ``N`` templates ``p × q [× kernel]``, scalers ``m × n``.

    ``W`` has shape ``(out_features, in_features, *kernel)``; it may be ragged, that is cut from ``(m·p, n·q)``.
    """

    N: int
    m: int
    n: int
    p: int
    q: int
    out_features: int
    in_features: int
    layout: str = "block"
    kernel: tuple[int, ...] = ()

    @property
    def taps(self) -> int:
        """Kernel positions of a convolution; 1 for a linear layer."""
        return prod(self.kernel)

    @property
    def ragged(self) -> bool:
        """Whether the dense weight is smaller than ``(m·p, n·q)``."""
        return (self.out_features, self.in_features) != (self.m * self.p, self.n * self.q)


def as_int(value: Any) -> Any:
    """``value`` if it is an int or a traced one, the int that a number such as NumPy's stands for, else ``None``."""
    if isinstance(value, Tensor) and torch.jit.is_tracing():  # sizes are tensors then
        return int(value)
    if isinstance(value, (bool, Tensor)):
        return None
    if isinstance(value, (int, torch.SymInt)):
        return value
    try:
        return index(value)
    except TypeError:
        return None


def sizes(name: str, shape: object) -> tuple[int, ...]:
    """``shape`` as a tuple, if it is a sequence of positive ints, or of numbers that stand for them."""
    found = tuple(map(as_int, shape)) if isinstance(shape, Iterable) else (None,)
    if None in found:
        raise TypeError(f"{name} must be a sequence of ints, got {shape!r}")
    if min(found, default=1) < 1:
        raise ValueError(f"{name} must be all positive, got {found}")
    return found


def check_choice(name: str, value: object, choices: Sequence[str]) -> None:
    """Raise ``ValueError`` unless ``value`` is one of ``choices``."""
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, choices))}, got {value!r}")


def check_ceil(name: str, value: Any, count: int, size: int, grid: str) -> Any:
    """Check that ``count`` blocks of ``size`` just cover ``value`` features, an int or a traced one; return it."""
    features = as_int(value)
    if features is None:
        raise TypeError(f"{name} must be an int, got {type(value).__name__}")
    if not (count - 1) * size < features <= count * size:
        raise ValueError(f"{name} is {features}, but {grid} cover {(count - 1) * size + 1} to {count * size} features")
    return features


def check_floating(name: str, tensor: object) -> None:
    """Raise ``TypeError`` unless ``tensor`` is a tensor of a supported floating dtype."""
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor, got {type(tensor).__name__}")
    if tensor.dtype not in DTYPES:
        raise TypeError(f"{name} must be float64, float32, bfloat16 or float16, got {tensor.dtype}")
    if tensor.layout != torch.strided or tensor.is_nested:
        kind = "a nested one" if tensor.is_nested else f"one of layout {tensor.layout}"
        raise TypeError(f"{name} must be a dense tensor, got {kind}")


def check_finite(name: str, tensor: Tensor) -> None:
    """Raise ``ValueError`` where a tensor has no numbers to read, or not only finite ones."""
    if tensor.is_meta:
        raise ValueError(f"{name} must hold numbers, but is on the meta device")
    if not torch.isfinite(tensor).all():
        raise ValueError(f"{name} holds NaN or infinity")


def check_factors(templates: Tensor, scalers: Tensor, kernel_dims: int = 0) -> None:
    """Check ``templates (N, p, q, *kernel)`` against ``scalers (N, m, n)``: type, rank, sizes, dtype and device."""
    check_floating("templates", templates)
    check_floating("scalers", scalers)
    if templates.dim() != 3 + kernel_dims:
        expected = "(N, p, q" + "".join(f", k{i}" for i in range(kernel_dims)) + ")"
        raise ValueError(f"templates must have shape {expected}, got {tuple(templates.shape)}")
    if scalers.dim() != 3:
        raise ValueError(f"scalers must have shape (N, m, n), got {tuple(scalers.shape)}")
    if templates.shape[0] != scalers.shape[0]:
        raise ValueError(
            f"scalers hold {scalers.shape[0]} templates' coefficients, but templates hold {templates.shape[0]}: "
            f"scalers {tuple(scalers.shape)}, templates {tuple(templates.shape)}"
        )
    for name, tensor in (("templates", templates), ("scalers", scalers)):
        if 0 in tensor.shape:
            raise ValueError(f"{name} must have no empty axis, got {tuple(tensor.shape)}")
    check_alike("scalers", scalers, "templates", templates)


_CAST = tuple(dtype for dtype in DTYPES if dtype != torch.float64)


def computed_dtype(tensor: Tensor) -> torch.dtype:
    """The dtype that a region of autocast, where there is one, computes with in place of a tensor's own."""
    device = tensor.device.type
    if tensor.dtype not in _CAST or not torch.amp.is_autocast_available(device):  # not available: meta tensors
        return tensor.dtype
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else tensor.dtype


def check_alike(name: str, tensor: Tensor, like_name: str, like: Tensor) -> None:
    """Check that two tensors share device and dtype, or will once autocast has cast them."""
    if tensor.device != like.device:
        raise ValueError(f"{name} is on {tensor.device}, but {like_name} is on {like.device}")
    dtype, like_dtype = computed_dtype(tensor), computed_dtype(like)
    if dtype != like_dtype:
        raise TypeError(f"{name} has dtype {dtype}, but {like_name} has {like_dtype}")


def check_operands(
    x: Tensor,
    templates: Tensor,
    scalers: Tensor,
    bias: Tensor | None,
    out_features: int | None,
    in_features: int,
    layout: str,
    *,
    out_name: str = "out_features",
    in_name: str = "x.shape[-1]",
) -> KronShape:
    """Check everything that linear and convolution share; ``templates`` and ``scalers`` are checked already."""
    check_choice("layout", layout, LAYOUTS)
    N, p, q, *kernel = templates.shape
    m, n = scalers.shape[1:]
    out = m * p if out_features is None else check_ceil(out_name, out_features, m, p, f"m={m} blocks of p={p}")
    check_ceil(in_name, in_features, n, q, f"n={n} blocks of q={q}")
    check_alike("x", x, "templates", templates)
    if bias is not None:
        check_floating("bias", bias)
        if bias.shape != (out,):
            raise ValueError(f"bias must have shape ({out},), got {tuple(bias.shape)}")
        check_alike("bias", bias, "templates", templates)
    return KronShape(N, m, n, p, q, out, in_features, layout, tuple(kernel))


def check_linear(
    x: Tensor, templates: Tensor, scalers: Tensor, bias: Tensor | None, out_features: int | None, layout: str
) -> KronShape:
    """Check the arguments of ``kron_linear`` and return their sizes."""
    check_floating("x", x)
    check_factors(templates, scalers)
    if x.dim() == 0:
        raise ValueError("x must have shape (..., in_features), got a scalar")
    return check_operands(x, templates, scalers, bias, out_features, x.shape[-1], layout)


def check_conv(
    dims: int,
    x: Tensor,
    templates: Tensor,
    scalers: Tensor,
    bias: Tensor | None,
    groups: int,
    out_channels: int | None,
    layout: str,
) -> KronShape:
    """Check the tensors of ``kron_conv{dims}d`` and return their sizes, ``in_features`` counted per group."""
    check_floating("x", x)
    check_factors(templates, scalers, dims)
    if x.dim() not in (dims + 1, dims + 2):
        raise ValueError(
            f"x must have {dims + 1} or {dims + 2} axes, (batch,) channels and {dims} spatial, got {tuple(x.shape)}"
        )
    channels = x.shape[-1 - dims]
    if channels % groups:
        raise ValueError(f"x has {channels} channels, which groups={groups} does not divide")
    shape = check_operands(
        x,
        templates,
        scalers,
        bias,
        out_channels,
        channels // groups,
        layout,
        out_name="out_channels",
        in_name="channels of x / groups",
    )
    if shape.out_features % groups:
        raise ValueError(f"out_channels is {shape.out_features}, which groups={groups} does not divide")
    return shape


def check_groups(groups: object) -> int:
    """Return ``groups`` as an int; raise ``ValueError`` unless it is a positive one."""
    number = as_int(groups)
    if number is None or number < 1:
        raise ValueError(f"groups must be a positive int, got {groups!r}")
    return number


def per_axis(name: str, value: int | Sequence[int], dims: int, least: int) -> tuple[int, ...]:
    """An int, or one int for each spatial axis, none below ``least`` → a tuple of ``dims`` ints."""
    values = tuple(map(as_int, value if isinstance(value, Sequence) else (value,)))
    values = values * dims if len(values) == 1 else values
    if len(values) != dims or not all(v is not None and v >= least for v in values):
        raise ValueError(f"{name} must be an int or {dims} ints, none below {least}, got {value!r}")
    return values


def conv_padding(
    padding: int | Sequence[int] | str, kernel: Sequence[int], stride: Sequence[int], dilation: Sequence[int]
) -> tuple[tuple[int, ...], list[int]]:
    """Padding of both sides of each axis, and what ``F.pad`` must add first where ``"same"`` is uneven."""
    dims = len(kernel)
    uneven = [0] * (2 * dims)
    if not isinstance(padding, str):
        return per_axis("padding", padding, dims, 0), uneven
    check_choice("padding", padding, ("same", "valid"))
    if padding == "valid":
        return (0,) * dims, uneven
    if any(s != 1 for s in stride):
        raise ValueError(f"padding='same' needs stride 1, got stride={tuple(stride)}")
    totals = [d * (k - 1) for k, d in zip(kernel, dilation, strict=True)]
    for axis, total in enumerate(totals):
        uneven[2 * (dims - 1 - axis) + 1] = total % 2
    return tuple(total // 2 for total in totals), uneven


def check_spatial(size: Sequence[int], kernel: Sequence[int], padding: Sequence[int], dilation: Sequence[int]) -> None:
    """Raise ``ValueError`` where the kernel does not fit into the padded input, or there is no input."""
    for axis, (s, k, pad, d) in enumerate(zip(size, kernel, padding, dilation, strict=True)):
        if s < 1:
            raise ValueError(f"x has no positions on spatial axis {axis}: {tuple(size)}")
        if s + 2 * pad < d * (k - 1) + 1:
            raise ValueError(
                f"x has {s} positions on spatial axis {axis}, {s + 2 * pad} when padded, "
                f"but a kernel of {k} with dilation {d} needs {d * (k - 1) + 1}"
            )
