"""What is said of data that do not suit the model or the loss, before the first step."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import weit
from tests.weit.toys import SPEC, images, vit
from weit.engine import TrainConfig, train

CONFIG = TrainConfig(steps=2, batch_size=16)
X, Y = images()
SHARES = F.one_hot(Y, 4).float()


@pytest.mark.parametrize(
    ("data", "error", "message"),
    [
        ((X.double(), Y), ValueError, r"data must suit model, which is of float32, .* \(1, 1, 4, 4\) of float64"),
        ((X.expand(-1, 3, -1, -1), Y), ValueError, r"an item with inputs \(1, 3, 4, 4\) of float32"),
        ((X[:, 0], Y), ValueError, r"an item with inputs \(1, 4, 4\) of float32"),
        ((X, Y.int()), TypeError, r"targets must be labels \(1,\) of int64, .* got \(1,\) of int32"),
        ((X, Y > 1), TypeError, "targets must be labels .* of bool"),
        ((X, Y.float()), TypeError, r"targets must be .*, or probabilities \(1, 4\), .* got \(1,\) of float32"),
        ((X, Y[:, None]), ValueError, r"targets must be labels .* got \(1, 1\) of int64"),
        ((X, SHARES.long()), ValueError, r"targets must be labels .* got \(1, 4\) of int64"),
        ((X, SHARES[:, :3]), ValueError, r"targets must be .* got \(1, 3\) of float32"),
    ],
)
def test_data_that_do_not_suit_are_named(data, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        train(vit(), data, CONFIG, progress=False)
    for lr in (1e-3, [1e-3, 1e-2]):
        model = vit()
        bank = weit.kronify(model, SPEC)
        with pytest.raises(error, match=message):
            weit.fit_scalers(model, bank, data, 2, batch_size=16, lr=lr)


def test_the_models_own_error_is_kept_behind_it() -> None:
    with pytest.raises(ValueError, match="data must suit model") as refused:
        train(vit(), (X.double(), Y), CONFIG, loss=lambda outputs, _: outputs.mean(), progress=False)
    assert isinstance(refused.value.__cause__, RuntimeError)


def test_an_output_without_classes_is_named() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 1), nn.Flatten(0))
    with pytest.raises(ValueError, match=r"model must give one output a class for cross-entropy, got \(1,\)"):
        train(model, (X, Y), CONFIG, progress=False)


@pytest.mark.parametrize(
    ("model", "data"),
    [
        (vit(), (X, SHARES)),
        (vit(), (X, SHARES.double())),
        (vit(), (X, Y.to(torch.uint8))),
        (nn.Conv2d(1, 4, 1), (X, Y[:, None, None].expand(-1, 4, 4))),
    ],
    ids=["probabilities", "float64", "uint8", "maps"],
)
def test_what_cross_entropy_takes_is_taken(model: nn.Module, data) -> None:
    assert len(train(model, data, CONFIG, progress=False)) == 1


def test_labels_of_maps_have_an_output_each() -> None:
    with pytest.raises(ValueError, match="targets must be below the 4 outputs of the model"):
        train(nn.Conv2d(1, 4, 1), (X, Y[:, None, None].expand(-1, 4, 4) + 1), CONFIG, progress=False)


def test_an_objective_of_ones_own_decides_what_data_it_takes() -> None:
    def objective(model, inputs, targets, step):
        return (model(inputs.float()).mean(1) - targets).square().mean()

    assert len(train(vit(), (X.double(), Y.float()), CONFIG, objective=objective, progress=False)) == 1


def test_a_cross_entropy_of_ones_own_takes_its_own_targets() -> None:
    class OfColumns(nn.CrossEntropyLoss):
        def forward(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
            return super().forward(outputs, targets[:, 0])

    assert len(train(vit(), (X, Y[:, None]), CONFIG, loss=OfColumns(), progress=False)) == 1
