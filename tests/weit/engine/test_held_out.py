"""What is kept from training."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from tests.weit.toys import images, vit
from weit.engine.data import item_count, split
from weit.engine.held_out import HELD_OUT_LOSS, HeldOut

COUNT = 205


class Items(torch.utils.data.Dataset):
    """The same items, fetched one by one."""

    def __init__(self, pair: tuple[Tensor, Tensor]) -> None:
        self.pair = pair

    def __len__(self) -> int:
        return len(self.pair[0])

    def __getitem__(self, i: int) -> tuple[Tensor, Tensor]:
        return self.pair[0][i], self.pair[1][i]


def numbered(kind: str) -> object:
    pair = torch.arange(COUNT, dtype=torch.float32).view(-1, 1), torch.arange(COUNT)
    datasets = {"tensors": pair, "tensor data set": TensorDataset(*pair), "items": Items(pair)}
    loader = DataLoader(Items(pair), batch_size=4, shuffle=True, collate_fn=lambda items: "collated", num_workers=1)
    return {**datasets, "list": list(zip(*pair, strict=True)), "loader": loader}[kind]


def seen(part: object) -> list[int]:
    if isinstance(part, DataLoader):
        assert (part.collate_fn([]), part.num_workers, part.batch_size) == ("collated", 1, 4)
        part = part.dataset
    return part[1].tolist() if isinstance(part, tuple) else [int(part[i][1]) for i in range(len(part))]


@pytest.mark.parametrize("kind", ["tensors", "tensor data set", "items", "list", "loader"])
def test_parts_are_drawn_at_random_and_complete_each_other(kind: str) -> None:
    rest, held = (seen(part) for part in split(numbered(kind), 20, seed=3))
    assert len(held) == 20
    assert sorted(rest + held) == list(range(COUNT))
    assert held != sorted(held)
    assert held == seen(split(numbered("tensors"), 20, seed=3)[1])
    assert held != seen(split(numbered(kind), 20, seed=4)[1])
    assert item_count(numbered(kind)) == COUNT


def test_a_single_item_makes_both_parts() -> None:
    assert [seen(part) for part in split(images(1), 1, seed=0)] == [[0], [0]]


class Noisy(nn.Module):
    """A model whose answers are drawn anew at each call."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * torch.randn(len(x), 4)


@pytest.mark.parametrize(
    ("batch_size", "count", "held"), [(1, 200, 16), (5, 200, 20), (8, 200, 16), (64, 200, 20), (4, 3, 1)]
)
def test_the_loss_is_the_mean_over_the_held_out_items(batch_size: int, count: int, held: int) -> None:
    """Whole batches of every tenth item, 16 at most, or one of fewer."""
    data, model = images(count), vit().eval()
    rest, (inputs, targets) = split(data, held, seed=2)
    held_out = HeldOut(data, model, F.cross_entropy, batch_size, seed=2)
    assert torch.equal(held_out.rest[0], rest[0])
    assert held_out(model)[HELD_OUT_LOSS] == pytest.approx(F.cross_entropy(model(inputs), targets).item(), rel=1e-5)


class Weighted(nn.CrossEntropyLoss):
    """Zero, once the loss has been computed, whose device may be one that has shapes alone."""

    def forward(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return torch.zeros_like(super().forward(outputs, targets), device="cpu")


def test_a_losss_own_tensors_are_taken_to_where_the_model_is() -> None:
    held_out = HeldOut(images(), vit(), Weighted(torch.ones(4)), 16, seed=0)
    assert held_out(vit().to("meta")) == {HELD_OUT_LOSS: 0}


def test_randomness_is_the_same_at_each_call_and_none_of_the_callers() -> None:
    state = torch.get_rng_state()
    held_out = HeldOut(Items(images()), Noisy(), F.cross_entropy, 16, seed=0)
    assert held_out(Noisy()) == held_out(Noisy())
    assert torch.equal(torch.get_rng_state(), state)


def test_bad_items_are_refused_before_any_training() -> None:
    inputs, targets = images(40)
    held = split((inputs, torch.arange(40)), 4, seed=0)[1][1]
    with pytest.raises(ValueError, match="targets must be below the 4 outputs"):
        HeldOut((inputs, targets.index_fill(0, held, 9)), vit(), F.cross_entropy, 16, seed=0)
    with pytest.raises(ValueError, match="finite"):
        HeldOut((inputs.index_fill(0, held, float("nan")), targets), vit(), F.cross_entropy, 16, seed=0)
    with pytest.raises(TypeError, match="data must be a data set"):
        HeldOut(3, vit(), F.cross_entropy, 16, seed=0)
