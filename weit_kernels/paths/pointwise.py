"""A convolution of one tap is a linear layer over its pixels: the fused kernels' ``conv`` and ``conv_backward``."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from weit_kernels.paths.convolution import ConvArgs

Grads = tuple[Tensor | None, Tensor | None, Tensor | None]


def pixels(maps: Tensor) -> Tensor:
    """``(B, channels, *spatial)`` → contiguous ``(B·pixels, channels)``; of one map ``reshape`` alone would be a view."""
    return maps.movedim(1, -1).reshape(-1, maps.shape[1]).contiguous()


def maps(rows: Tensor, like: Tensor) -> Tensor:
    """``(B·pixels, channels)`` → contiguous ``(B, channels, *spatial)``; batch and sizes as ``like`` has them."""
    return rows.view(like.shape[0], *like.shape[2:], rows.shape[1]).movedim(-1, 1).contiguous()


def conv_functions(
    linear: Callable[..., Tensor],
    linear_backward: Callable[..., Grads],
    pixels: Callable[[Tensor], Tensor] = pixels,
    maps: Callable[[Tensor, Tensor], Tensor] = maps,
) -> tuple[Callable[..., Tensor], Callable[..., Grads]]:
    """``conv`` and ``conv_backward`` of a path, from its linear form.

    For one tap, stride 1, no padding and one group only, which ``backends.why_not`` sees to. The channels are put
    last by ``pixels``, and first again by ``maps``: a copy each.
    """

    def conv(x: Tensor, T: Tensor, S: Tensor, bias: Tensor | None, out: int, args: ConvArgs) -> Tensor:
        """``x (B, in, *spatial)`` → ``(B, out, *spatial)``; ``T (N, p, q, *ones)``."""
        return maps(linear(pixels(x), T.flatten(2), S, bias, out), x)

    def conv_backward(dy: Tensor, x: Tensor, T: Tensor, S: Tensor, need: list[bool], args: ConvArgs) -> Grads:
        """``dy (B, out, *spatial)``, ``x (B, in, *spatial)`` → gradients of ``x``, ``T`` and ``S``."""
        dx, dT, dS = linear_backward(pixels(dy), pixels(x), T.flatten(2), S, need)
        return None if dx is None else maps(dx, x), None if dT is None else dT.view(T.shape), dS

    return conv, conv_backward
