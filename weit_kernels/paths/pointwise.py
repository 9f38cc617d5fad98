"""A convolution of one tap is a linear layer over its pixels: the fused kernels' ``conv`` and ``conv_backward``."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from weit_kernels.paths.convolution import ConvArgs

Grads = tuple[Tensor | None, Tensor | None, Tensor | None]


def rows_of(maps: Tensor) -> Tensor:
    """``(B, channels, *spatial)`` → contiguous ``(B·pixels, channels)``; of one map ``reshape`` alone would be a view."""
    return maps.movedim(1, -1).reshape(-1, maps.shape[1]).contiguous()


def maps_of(rows: Tensor, like: Tensor) -> Tensor:
    """``(B·pixels, channels)`` → contiguous ``(B, channels, *spatial)``; batch and sizes as ``like`` has them."""
    return rows.view(like.shape[0], *like.shape[2:], rows.shape[1]).movedim(-1, 1).contiguous()


def conv_functions(
    linear: Callable[..., Tensor],
    linear_backward: Callable[..., Grads],
    to_rows: Callable[[Tensor], Tensor] = rows_of,
    to_maps: Callable[[Tensor, Tensor], Tensor] = maps_of,
) -> tuple[Callable[..., Tensor], Callable[..., Grads]]:
    """``conv`` and ``conv_backward`` of a path, from its linear form.

    For one tap, stride 1, no padding and one group only, which ``backends.why_not`` sees to. The channels are put
    last by ``to_rows``, and first again by ``to_maps``: a copy each, but of single pixels. Maps and rows are contiguous.
    """

    def conv(x: Tensor, T: Tensor, S: Tensor, bias: Tensor | None, out: int, args: ConvArgs) -> Tensor:
        """``x (B, in, *spatial)`` → ``(B, out, *spatial)``; ``T (N, p, q, *ones)``."""
        return to_maps(linear(to_rows(x), T.flatten(2), S, bias, out), x)

    def conv_backward(dy: Tensor, x: Tensor, T: Tensor, S: Tensor, need: list[bool], args: ConvArgs) -> Grads:
        """``dy (B, out, *spatial)``, ``x (B, in, *spatial)`` → gradients of ``x``, ``T`` and ``S``."""
        dx, dT, dS = linear_backward(to_rows(dy), to_rows(x), T.flatten(2), S, need)
        return None if dx is None else to_maps(dx, x), None if dT is None else dT.view(T.shape), dS

    return conv, conv_backward
