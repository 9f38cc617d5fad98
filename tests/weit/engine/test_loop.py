"""The training loop: what it depends on, what it leaves, what it refuses."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState
from torch import nn
from torch.utils.data import BatchSampler, DataLoader, TensorDataset, WeightedRandomSampler

from tests.weit.engine.runs import CONFIG, same, trained
from tests.weit.toys import accuracy, images, vit
from weit.engine import TrainConfig, train
from weit.engine.processes import own_accelerate


def test_learns() -> None:
    model, history = trained(TrainConfig(steps=60, batch_size=32, lr=3e-3))
    assert history[-1]["loss"] < history[0]["loss"] / 2
    assert accuracy(model) > 0.9


def test_depends_on_its_arguments_alone_and_leaves_the_callers_randomness() -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(0)
    model = vit()
    torch.manual_seed(5)
    train(model, images(), CONFIG, progress=False)
    assert torch.equal(torch.rand(3), expected)
    assert same(model, trained()[0])
    other = trained(TrainConfig(steps=20, batch_size=16, lr=3e-3, seed=1))[0]
    assert not same(model, other)


def test_gradients_of_the_callers_have_no_say() -> None:
    """Neither those of what learns, in the first step, nor those of what is frozen, in the norm that steps are cut to."""
    models = []
    for left in (None, 1e3):
        torch.manual_seed(0)
        models.append(vit())
        models[-1].head.requires_grad_(False)
        for parameter in models[-1].parameters():
            parameter.grad = None if left is None else torch.full_like(parameter, left)
        train(models[-1], images(), CONFIG, progress=False)
    assert same(*models)
    frozen = {"head.weight", "head.bias"}  # theirs are still the caller's
    assert {name for name, each in models[1].named_parameters() if each.grad is not None} == frozen


@own_accelerate()
def test_the_callers_accelerate_is_left_alone_and_has_no_say() -> None:
    expected, _ = trained()
    mine = Accelerator(cpu=True, mixed_precision="bf16", gradient_accumulation_steps=8)
    with mine.accumulate(nn.Linear(2, 2)):  # in this step accelerate would not let an optimiser act
        before = dict(AcceleratorState._shared_state), dict(GradientState._shared_state)
        model, _ = trained()
        with pytest.raises(ValueError, match="not negative"):
            trained(data=(X, Y - 1))
        assert (AcceleratorState._shared_state, GradientState._shared_state) == before
    assert same(model, expected)
    assert (mine.mixed_precision, mine.gradient_accumulation_steps, mine.sync_gradients) == ("bf16", 8, False)


def test_every_kind_of_data_gives_the_same_result() -> None:
    dataset = TensorDataset(*images())

    class Items(torch.utils.data.Dataset):
        def __len__(self) -> int:
            return len(dataset)

        def __getitem__(self, index):
            return dataset[index]

    reference = trained()[0]
    for data in (dataset, Items(), DataLoader(dataset, batch_size=3), DataLoader(Items(), num_workers=1)):
        assert same(reference, trained(data=data)[0])


def test_accumulation_changes_rounding_only() -> None:
    """In float64: Adam would turn the rounding of a bias whose gradient is zero, as the keys' is, into whole steps."""
    inputs, targets = images()
    models = []
    for config in (CONFIG, replace(CONFIG, accumulate=4)):
        torch.manual_seed(0)
        models.append(vit().double())
        train(models[-1], (inputs.double(), targets), config, progress=False)
    for a, b in zip(*(model.parameters() for model in models), strict=True):
        assert torch.allclose(a, b, atol=1e-7)


@pytest.mark.parametrize("kind", [torch.tensor, np.float32, np.int64, lambda value: np.array([value])[0]])
def test_scores_may_be_any_numbers(kind, tmp_path: Path) -> None:
    _, history = trained(run_dir=tmp_path, evaluate=lambda model: {"score": kind(3)})
    assert history[-1]["score"] == 3
    assert json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[-1]) == history[-1]


def test_run_folder(tmp_path: Path) -> None:
    _, history = trained(run_dir=tmp_path / "run")
    lines = (tmp_path / "run/metrics.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == history
    assert [record["step"] for record in history] == [5, 10, 15, 20]
    assert "lr: 0.003" in (tmp_path / "run/config.yaml").read_text()
    assert list((tmp_path / "run/tensorboard").glob("events.*"))
    assert len(list((tmp_path / "run/checkpoints").iterdir())) == CONFIG.keep_checkpoints


def test_a_config_may_be_a_mapping(tmp_path: Path) -> None:
    _, history = trained(CONFIG)
    _, again = trained({"steps": 20, "batch_size": 16, "lr": 3e-3, "log_every": 5, "evaluate_every": 10})
    assert again == history
    with pytest.raises(ValueError, match="fields of TrainConfig, but not 'speed'"):
        trained({"speed": 3})
    with pytest.raises(TypeError, match="config must be a TrainConfig or a mapping with its fields, got int"):
        trained(3)


X, Y = images()
NAN = X.clone()
NAN[3, 0, 0, 0] = float("nan")


@pytest.mark.parametrize(
    ("data", "error", "message"),
    [
        ((NAN, Y), ValueError, "inputs must be finite, got NaN or infinity in 1 of 64"),
        (((X * 50).to(torch.uint8), Y), TypeError, "inputs must be floating, got torch.uint8"),
        ((X[:0], Y[:0]), ValueError, "at least one item"),
        ((X, Y[:5]), ValueError, "of one length, got 64 and 5"),
        ((X, Y + 1), ValueError, "targets must be below the 4 outputs"),
        ((X, Y - 1), ValueError, "not negative"),
        ((X,), TypeError, "pairs of tensors"),
        (3, TypeError, "data must be a data set"),
        (iter([(X, Y)]), TypeError, "data must be a data set"),
    ],
)
def test_bad_data_is_refused_before_the_first_step(data, error, message, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, untouched = vit(), vit()
    untouched.load_state_dict(model.state_dict())
    with pytest.raises(error, match=message):
        train(model, data, CONFIG, run_dir=tmp_path / "run", progress=False)
    assert same(model, untouched)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("loss", "ignored", "bad"),
    [(nn.functional.cross_entropy, -100, -1), (nn.CrossEntropyLoss(ignore_index=-1), -1, -100)],
)
@pytest.mark.parametrize("kind", [tuple, lambda pair: list(zip(*pair, strict=True))], ids=["tensors", "items"])
def test_the_label_that_a_loss_ignores_may_occur(loss, ignored: int, bad: int, kind) -> None:
    config, some = replace(CONFIG, steps=4), torch.tensor([3])
    trained(config, kind((X, Y.index_fill(0, some, ignored))), loss=loss)
    with pytest.raises(ValueError, match="not negative"):
        trained(config, kind((X, Y.index_fill(0, some, bad))), loss=loss)


@pytest.mark.parametrize(
    ("field", "message"),
    [
        ({"steps": 0}, "steps must be a positive int, got 0"),
        ({"lr": -1.0}, "lr must be a positive number"),
        ({"warmup": 2.0}, "warmup must be a share"),
        ({"mixed_precision": "int8"}, "mixed_precision must be"),
        ({"batch_size": 10, "accumulate": 3}, "accumulate must be a divisor of batch_size=10"),
        ({"betas": (0.9, 1.0)}, "betas must be"),
        ({"betas": 0.9}, "betas must be two numbers"),
        ({"steps": True}, "steps must be a positive int, got True"),
        ({"lr": "0.1"}, "lr must be a positive number, got '0.1'"),
        ({"weight_decay": None}, "weight_decay must be a number from 0, got None"),
        ({"clip_norm": "1"}, "clip_norm must be a positive number or None"),
        ({"workers": -1}, "workers must be an int from 0, got -1"),
        ({"sharding": "zero"}, 'sharding must be "none" or "fsdp", got \'zero\''),
        ({"sharding": "fsdp", "mixed_precision": "fp16"}, 'mixed_precision must be "no" or "bf16" with sharding'),
    ],
)
def test_bad_settings(field: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TrainConfig(**field)


def test_settings_may_be_numpys() -> None:
    config = TrainConfig(steps=np.int64(5), lr=np.float64(1e-3))
    assert (type(config.steps), config) == (int, TrainConfig(steps=5, lr=1e-3))


def test_a_loss_that_diverges_is_reported_with_its_step() -> None:
    def objective(model, inputs, targets, step):
        return nn.functional.cross_entropy(model(inputs), targets) * (float("nan") if step == 6 else 1)

    with pytest.raises(FloatingPointError, match="loss became nan in step 7 of 20"):
        trained(objective=objective)


def test_a_last_step_that_diverges_is_reported_and_not_kept(tmp_path: Path) -> None:
    """No loss comes after it; with 3e38 every parameter overflows."""
    config = replace(CONFIG, steps=1, lr=3e38)
    with pytest.raises(FloatingPointError, match="parameters became NaN or infinite in step 1 of 1; a smaller lr"):
        trained(config, run_dir=tmp_path)
    assert not list(tmp_path.glob("checkpoints/step_*"))
    assert not (tmp_path / "metrics.jsonl").read_text()


def test_frozen_models_and_other_outputs_are_refused() -> None:
    with pytest.raises(ValueError, match="no parameter that requires gradients"):
        train(vit().requires_grad_(False), images(), CONFIG)
    with pytest.raises(TypeError, match="model must return a tensor"):
        train(_Listing(), images(), CONFIG, progress=False)


class _Listing(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = vit()

    def forward(self, x):
        return [self.inner(x)]


def test_frozen_modules_come_back_frozen() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 4), nn.BatchNorm1d(4), nn.Dropout())
    model[2].eval()
    train(model, images(), CONFIG, progress=False)
    assert [module.training for module in model.modules()] == [True, True, True, False, True]


def test_a_loader_with_batches_of_its_own_is_refused() -> None:
    dataset = TensorDataset(*images())
    batches = BatchSampler(WeightedRandomSampler(torch.ones(64), 64), 4, drop_last=False)
    for sampler, name in ((batches, "WeightedRandomSampler"), ([[3, 3], [3, 3]], "list")):
        with pytest.raises(ValueError, match=f"data draws by its own {name}"):
            trained(data=DataLoader(dataset, batch_sampler=sampler))
