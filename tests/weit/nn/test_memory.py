"""What a layer keeps in memory: templates, scalers and bias, their gradients and optimiser state, and nothing dense."""

import pytest
import torch
from torch import nn

import weit


def _bytes(tensors) -> int:
    return sum(t.numel() * t.element_size() for t in tensors)


@pytest.mark.parametrize("convolution", [False, True])
def test_training_state_is_that_of_the_factors(convolution: bool) -> None:
    torch.manual_seed(0)
    if convolution:
        layer: nn.Module = weit.KronConv2d(128, 128, 3, padding=1, templates=2, template_shape=(32, 32))
        x, dense = torch.randn(2, 128, 6, 6), 128 * 128 * 9
        factors = 2 * 32 * 32 * 9 + 2 * 4 * 4 + 128
    else:
        layer = weit.KronLinear(512, 512, templates=4, template_shape=(32, 32))
        x, dense, factors = torch.randn(4, 512), 512 * 512, 4 * 32 * 32 + 4 * 16 * 16 + 512
    optimizer = torch.optim.AdamW(layer.parameters())
    kept: list[torch.Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        loss = layer(x).square().mean()
    loss.backward()
    optimizer.step()

    assert _bytes(layer.parameters()) == 4 * factors
    assert _bytes(p.grad for p in layer.parameters()) == 4 * factors
    state = [v for s in optimizer.state.values() for v in s.values() if v.dim()]
    assert _bytes(state) == 8 * factors
    assert max(t.numel() for t in kept) < dense / 4
