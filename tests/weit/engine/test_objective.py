"""What a step minimises."""

import torch
from torch import nn

from tests.weit.toys import images, vit
from weit.engine.objective import Supervised
from weit.engine.soft_targets import SoftTargets


def test_a_losss_own_tensors_are_taken_to_where_the_model_is() -> None:
    """To the one other device that is everywhere, which computes shapes alone."""
    loss, distance = nn.CrossEntropyLoss(torch.ones(4)), nn.BCEWithLogitsLoss(pos_weight=torch.ones(4))
    inputs, targets = (tensor.to("meta") for tensor in images())
    for objective in (Supervised(loss), SoftTargets(vit(), loss, alpha=1, temperature=1, distance=distance)):
        assert objective(vit().to("meta"), inputs, targets, 0).device.type == "meta"
    assert loss.weight.device.type == distance.pos_weight.device.type == "cpu"
