"""Elastic models: the smaller sizes are prefixes of the big one's parameters, and cost what they look like."""

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import weit
from tests.weit.toys import SPEC, images, vit
from weit.masks import Elastic, draw_size


def elastic(*sizes: tuple[int, int], layout: str = "block") -> tuple[Elastic, list[nn.Module]]:
    torch.manual_seed(0)
    big, smaller = vit().double(), [vit(*size).double() for size in sizes]
    bank = weit.kronify(big, {**SPEC, "layout": layout})
    for small in smaller:
        weit.kronify(small, bank)
    return Elastic(big, smaller), smaller


def test_a_size_is_the_model_made_of_prefixes() -> None:
    """Copied by hand into a model of the small size, cut parameters give the same outputs."""
    model, (small,) = elastic((16, 2))
    big = model.model
    with torch.no_grad():
        for name, parameter in small.named_parameters():
            if name.endswith("templates"):
                continue
            whole = big.get_parameter(name)
            cut = whole[tuple(map(slice, parameter.shape))]
            inputs = {"scalers": 2, "weight": 1}.get(name.rpartition(".")[2])
            if inputs is not None and parameter.dim() > 1:
                cut = cut * (whole.shape[inputs] / parameter.shape[inputs]) ** 0.5
            parameter.copy_(cut)
    x = images()[0].double()
    assert torch.allclose(model(x, size=1), small(x), atol=1e-12)
    assert torch.equal(model(x, size=0), big(x))


@pytest.mark.parametrize(("wide", "narrow"), [(32, 20), (20, 16), (32, 16)])
def test_weights_grow_by_inputs_and_not_by_blocks_of_them(wide: int, narrow: int) -> None:
    """Two blocks of 16 hold 17 to 32 inputs."""
    torch.manual_seed(0)
    big, small = (nn.Sequential(nn.Linear(width, 8, bias=False)) for width in (wide, narrow))
    bank = weit.kronify(big, {"templates": 3, "template_shape": (4, 16)}, rules={"0": "a"})
    weit.kronify(small, bank, rules={"0": "a"})
    answers = Elastic(big, [small])(torch.eye(narrow), size=1)
    torch.testing.assert_close(answers, big[0].weight[:, :narrow].T * (wide / narrow) ** 0.5)


def test_gradients_land_in_the_prefix_of_the_big_model() -> None:
    model, _ = elastic((16, 2))
    model(images()[0].double(), size=1).square().sum().backward()
    scalers = model.model.get_parameter("blocks.0.mlp.fc1.scalers").grad
    assert scalers is not None
    m, n = scalers.shape[1] // 2, scalers.shape[2] // 2
    assert scalers[:, :m, :n].abs().min() > 0
    assert scalers[:, m:].abs().max() == scalers[:, :, n:].abs().max() == 0
    assert model.model.get_parameter("blocks.2.mlp.fc1.scalers").grad is None
    assert model.model.get_parameter("blocks.0.mlp.fc1.templates").grad.abs().min() > 0


def test_a_masked_step_costs_what_the_smaller_model_costs() -> None:
    model, (small,) = elastic((16, 2))
    x = images()[0].double()

    def flops(function) -> int:
        with FlopCounterMode(display=False) as counter:
            function().sum().backward()
        return counter.get_total_flops()

    alone = flops(lambda: small(x))
    assert flops(lambda: model(x, size=1)) == alone
    assert flops(lambda: model(x, size=0)) > 2 * alone


def test_skeletons_hold_nothing() -> None:
    model, _ = elastic((16, 2), (32, 1))
    assert model.sizes == 3
    assert model.state_dict().keys() == {f"model.{name}" for name in model.model.state_dict()}
    assert sum(p.numel() for p in model.parameters()) == sum(p.numel() for p in model.model.parameters())


@pytest.mark.parametrize(("size", "message"), [((40, 3), "smaller.0. must be a part"), ((32, 4), "no parameter")])
def test_what_is_no_part_of_the_model_is_refused(size: tuple[int, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        elastic(size)


def test_interleaved_layers_may_leave_out_blocks_but_no_features() -> None:
    model, (shallow,) = elastic((32, 2), layout="interleaved")
    shallow.load_state_dict(model.model.state_dict(), strict=False)
    x = images()[0].double()
    assert torch.allclose(model(x, size=1), shallow(x), atol=1e-12)
    with pytest.raises(
        ValueError, match=r"keep their width .*'blocks\.0.* of smaller\[1\] is \(4, 2, 2\), .*\(4, 4, 4\)"
    ):
        elastic((32, 2), (16, 3), layout="interleaved")


def test_smaller_models_must_share_the_bank() -> None:
    big, small = vit(), vit(16, 2)
    weit.kronify(big, SPEC)
    weit.kronify(small, SPEC)
    with pytest.raises(ValueError, match="must share the templates"):
        Elastic(big, [small])


def test_sizes_are_drawn_in_their_shares_and_by_seed_and_step_alone() -> None:
    draws = [draw_size(3, step, 4, 0.4) for step in range(4000)]
    assert draws == [draw_size(3, step, 4, 0.4) for step in range(4000)]
    assert draws != [draw_size(4, step, 4, 0.4) for step in range(4000)]
    shares = torch.bincount(torch.tensor(draws), minlength=4) / len(draws)
    assert torch.allclose(shares, torch.tensor([0.4, 0.2, 0.2, 0.2]), atol=0.03)
    assert {draw_size(0, step, 1, 0.0) for step in range(10)} == {0}
