import torch

from weit.models import VisionTransformer
from weit.rivals import RIVALS


def test_scratch_keeps_what_the_constructor_drew():
    target, source = VisionTransformer(width=16, depth=1), VisionTransformer(width=16, depth=1)
    before = {name: value.clone() for name, value in target.state_dict().items()}
    assert RIVALS["scratch"](target, source, seed=3) is target
    torch.testing.assert_close(target.state_dict(), before, rtol=0, atol=0)
