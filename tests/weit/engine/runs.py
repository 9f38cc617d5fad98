"""A short run of the loop, for its tests."""

import torch
from torch import nn

from tests.weit.toys import images, vit
from weit.engine import TrainConfig, train

CONFIG = TrainConfig(steps=20, batch_size=16, lr=3e-3, log_every=5, checkpoint_every=5, evaluate_every=10)


def trained(config: TrainConfig = CONFIG, data=None, **run) -> tuple[nn.Module, list[dict[str, float]]]:
    torch.manual_seed(0)
    model = vit()
    return model, train(model, images() if data is None else data, config, progress=False, **run)


def same(a: nn.Module, b: nn.Module) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))
