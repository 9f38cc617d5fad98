"""Batches of several inputs, in this process and from workers."""

import pytest
import torch
from torch.utils.data import DataLoader

from tests.weit.engine.scenarios import Halves, OfHalves, halves
from weit.engine import Batches, TrainConfig, train


class Augmented(Halves):
    """With noise drawn anew at every access."""

    def __getitem__(self, index: int):
        (upper, lower), label = super().__getitem__(index)
        return (upper + torch.randn(()), lower), label


@pytest.mark.parametrize("data", [Augmented(), DataLoader(Augmented(), num_workers=1)], ids=["items", "loader"])
def test_workers_give_the_same_batches(data) -> None:
    plain, fetched = Batches(Augmented(), 16, seed=3), Batches(data, 16, seed=3, workers=2)
    for step, (inputs, targets) in enumerate(fetched.stream(2, 7), 2):
        (upper, lower), expected = plain.batch(step)
        assert isinstance(inputs, tuple)
        assert torch.equal(inputs[0], upper)
        assert torch.equal(inputs[1], lower)
        assert torch.equal(targets, expected)


def test_processes_share_a_batch() -> None:
    whole = Batches(Halves(), 16)
    parts = [Batches(Halves(), 16, rank=rank, world=2) for rank in range(2)]
    for step in (0, 3, 9):
        together = [torch.cat(each) for each in zip(*(part.batch(step)[0] for part in parts), strict=True)]
        assert all(torch.equal(a, b) for a, b in zip(whole.batch(step)[0], together, strict=True))


def test_a_model_of_several_inputs_learns_the_same_in_parts_and_from_workers() -> None:
    model, history = halves()
    assert history[-1]["loss"] < history[0]["loss"] / 2
    again, _ = halves(accumulate=4, workers=2)
    for a, b in zip(model.parameters(), again.parameters(), strict=True):
        assert torch.allclose(a, b, atol=1e-7)


class Counted(Halves):
    """Counts the items that were fetched."""

    fetched = 0

    def __getitem__(self, index: int):
        self.fetched += 1
        return super().__getitem__(index)


def test_no_more_than_a_batch_is_fetched_to_check_the_data() -> None:
    data = Counted()
    train(OfHalves(), data, TrainConfig(steps=1, batch_size=16), progress=False)
    assert data.fetched == 2 * 16  # to check, and to train


class NotPairs(Halves):
    def __init__(self, item) -> None:
        super().__init__()
        self.item = item

    def __getitem__(self, index: int):
        return self.item


X, Y = torch.zeros(1, 4), torch.tensor(0)


@pytest.mark.parametrize(
    ("item", "error", "message"),
    [
        (((X, X),), TypeError, "pairs of tensors"),
        (((), Y), TypeError, "pairs of tensors"),
        (((X, {"x": X}), Y), TypeError, r"pairs of tensors .*dict"),
        (((X, X / 0), Y), ValueError, "inputs must be finite"),
        (((X, X.to(torch.uint8)), Y), TypeError, "inputs must be floating"),
    ],
)
def test_items_of_another_kind_are_refused(item, error, message) -> None:
    with pytest.raises(error, match=message):
        Batches(NotPairs(item), 4)


def test_a_list_of_items_is_a_data_set() -> None:
    x, y = torch.randn(24, 3), torch.arange(24) % 4
    listed, pair = Batches([(a, int(b)) for a, b in zip(x, y, strict=True)], 8, seed=1), Batches((x, y), 8, seed=1)
    for step in range(4):
        assert all(torch.equal(a, b) for a, b in zip(listed.batch(step), pair.batch(step), strict=True))


def test_a_refused_list_is_named_in_short() -> None:
    with pytest.raises(TypeError, match=r"got \(Tensor, Tensor, Tensor, Tensor, …\)$"):
        Batches([torch.ones(2)] * 100, 4)
