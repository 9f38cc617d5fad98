"""Panel with Triton's synthesiser: the same loop and library products as ``weit_kernels.paths.panel``.

Panels come out of one kernel in their final order, for convolutions of any kernel too, grouped or not.
"""

from __future__ import annotations

from functools import partial

from torch import Tensor

from weit_kernels.paths import panel
from weit_kernels.paths.convolution import ConvArgs, in_step
from weit_kernels.triton import synth
from weit_kernels.triton.pixels import conv_functions

CHANNELS_LAST = panel.CHANNELS_LAST

linear = partial(panel.linear, synth=synth)
linear_backward = partial(panel.linear_backward, synth=synth)
_pointwise, _pointwise_backward = conv_functions(linear, linear_backward)


def conv(x: Tensor, T: Tensor, S: Tensor, bias: Tensor | None, out: int, args: ConvArgs) -> Tensor:
    """``x (B, groups·in, *spatial)`` → ``(B, out, *spatial)``."""
    if _by_pixels(x, T, args):
        return _pointwise(x, T, S, bias, out, args)
    return panel.conv(x, T, S, bias, out, args, synth=synth)


def conv_backward(dy: Tensor, x: Tensor, T: Tensor, S: Tensor, need: list[bool], args: ConvArgs) -> panel.Grads:
    """``dy (B, out, *spatial')``, ``x (B, groups·in, *spatial)`` → gradients of ``x``, ``T`` and ``S``."""
    if _by_pixels(x, T, args):
        return _pointwise_backward(dy, x, T, S, need, args)
    return panel.conv_backward(dy, x, T, S, need, args, synth=synth)


def _by_pixels(x: Tensor, T: Tensor, args: ConvArgs) -> bool:
    """Whether channels are put last, which takes copies of ``x`` and ``y``.

    The library multiplies slowly where a map's rows are not 16 bytes apart: on an H200, on maps of 14 x 14 in bfloat16
    (``convnext_pw``), 92 TFLOP/s, a fifth of what the layer comes to with channels last. Other dtypes were not seen.
    """
    return args.pointwise(T.shape[3:]) and not in_step(x.shape[2:], x.element_size())
