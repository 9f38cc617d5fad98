"""What is kept from training."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from tests.weit.toys import images, vit
from weit.engine.data import split
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
    rest, held = (seen(part) for part in split(numbered(kind), share=10, most=1000, seed=3))
    assert len(held) == COUNT // 10
    assert sorted(rest + held) == list(range(COUNT))
    assert held != sorted(held)
    assert held == seen(split(numbered("tensors"), share=10, most=1000, seed=3)[1])
    assert held != seen(split(numbered(kind), share=10, most=1000, seed=4)[1])
    assert len(seen(split(numbered(kind), share=10, most=7, seed=3)[1])) == 7


def test_few_items_still_make_two_parts() -> None:
    assert [len(seen(part)) for part in split(images(3), share=10, most=16, seed=0)] == [2, 1]
    assert [seen(part) for part in split(images(1), share=10, most=16, seed=0)] == [[0], [0]]


class Noisy(nn.Module):
    """A model whose answers are drawn anew at each call."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * torch.randn(len(x), 4)


@pytest.mark.parametrize("batch_size", [5, 20, 64])
def test_the_loss_is_the_mean_over_the_held_out_items(batch_size: int) -> None:
    data, model = images(200), vit().eval()
    inputs, targets = split(data, share=10, most=16 * batch_size, seed=2)[1]
    found = HeldOut(data, model, F.cross_entropy, batch_size, seed=2)(model)[HELD_OUT_LOSS]
    whole = F.cross_entropy(model(inputs), targets).item()
    if batch_size <= len(targets):
        assert found == pytest.approx(whole, rel=1e-5)
    else:  # 64 draws of 20 items: each comes three or four times
        assert found == pytest.approx(whole, rel=0.3)


def test_randomness_is_the_same_at_each_call_and_none_of_the_callers() -> None:
    held_out = HeldOut(images(), Noisy(), F.cross_entropy, 16, seed=0)
    state = torch.get_rng_state()
    assert held_out(Noisy()) == held_out(Noisy())
    assert torch.equal(torch.get_rng_state(), state)


def test_bad_items_are_refused_before_any_training() -> None:
    inputs, targets = images(40)
    held = split((inputs, torch.arange(40)), share=10, most=16, seed=0)[1][1]
    with pytest.raises(ValueError, match="targets must be below the 4 outputs"):
        HeldOut((inputs, targets.index_fill(0, held, 9)), vit(), F.cross_entropy, 16, seed=0)
    with pytest.raises(ValueError, match="finite"):
        HeldOut((inputs.index_fill(0, held, float("nan")), targets), vit(), F.cross_entropy, 16, seed=0)
    with pytest.raises(TypeError, match="data must be a data set"):
        HeldOut(3, vit(), F.cross_entropy, 16, seed=0)
