"""Panel with Triton's synthesiser: the same loop and library products as ``weit_kernels.paths.panel``.

Panels come out of one kernel in their final order, for convolutions of any kernel too, grouped or not.
"""

from __future__ import annotations

from functools import partial

from weit_kernels.paths import panel
from weit_kernels.triton import synth

CHANNELS_LAST = panel.CHANNELS_LAST

linear = partial(panel.linear, synth=synth)
linear_backward = partial(panel.linear_backward, synth=synth)
conv = partial(panel.conv, synth=synth)
conv_backward = partial(panel.conv_backward, synth=synth)
