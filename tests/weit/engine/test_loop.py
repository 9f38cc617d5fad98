"""The training loop: what it depends on, what it leaves, what it refuses."""

import json
import multiprocessing
import os
import signal
import socket
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from tests.weit.toys import accuracy, images, vit
from weit.engine import TrainConfig, train

CONFIG = TrainConfig(steps=20, batch_size=16, lr=3e-3, log_every=5, checkpoint_every=5, evaluate_every=10)


def trained(config: TrainConfig = CONFIG, data=None, **run) -> tuple[nn.Module, list[dict[str, float]]]:
    torch.manual_seed(0)
    model = vit()
    return model, train(model, images() if data is None else data, config, progress=False, **run)


def same(a: nn.Module, b: nn.Module) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


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


@pytest.mark.parametrize("cut", [5, 13])
def test_a_resumed_run_equals_an_uninterrupted_one(cut: int, tmp_path: Path) -> None:
    whole, history = trained(run_dir=tmp_path / "whole", evaluate=lambda model: {"accuracy": accuracy(model)})

    class Stop(Exception):
        pass

    def objective(model, inputs, targets, step):
        if step == cut:
            raise Stop
        return nn.functional.cross_entropy(model(inputs), targets)

    evaluate = {"evaluate": lambda model: {"accuracy": accuracy(model)}}
    with pytest.raises(Stop):
        trained(run_dir=tmp_path / "cut", objective=objective, **evaluate)
    torch.manual_seed(99)
    resumed = vit()
    again = train(resumed, images(), CONFIG, run_dir=tmp_path / "cut", resume=True, progress=False, **evaluate)
    assert same(whole, resumed)
    assert again == history
    assert (tmp_path / "cut/metrics.jsonl").read_bytes() == (tmp_path / "whole/metrics.jsonl").read_bytes()


def _train_slowly(folder: Path) -> None:
    torch.set_num_threads(1)

    def objective(model, inputs, targets, step):
        time.sleep(0.02)
        return nn.functional.cross_entropy(model(inputs), targets)

    trained(run_dir=folder, objective=objective)


def test_a_killed_run_resumes_to_the_same_end(tmp_path: Path) -> None:
    process = multiprocessing.get_context("spawn").Process(target=_train_slowly, args=(tmp_path / "killed",))
    process.start()
    while not list(tmp_path.glob("killed/checkpoints/step_*")):
        time.sleep(0.01)
        assert process.is_alive() or list(tmp_path.glob("killed/checkpoints/step_*"))
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    resumed, history = trained(run_dir=tmp_path / "killed", resume=True)
    whole, expected = trained(run_dir=tmp_path / "whole")
    assert same(whole, resumed)
    assert history == expected


def test_run_folder(tmp_path: Path) -> None:
    _, history = trained(run_dir=tmp_path / "run")
    lines = (tmp_path / "run/metrics.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == history
    assert [record["step"] for record in history] == [5, 10, 15, 20]
    assert "lr: 0.003" in (tmp_path / "run/config.yaml").read_text()
    assert list((tmp_path / "run/tensorboard").glob("events.*"))
    assert len(list((tmp_path / "run/checkpoints").iterdir())) == CONFIG.keep_checkpoints


def _truncate(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:100])


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.safetensors", "state.json"])
@pytest.mark.parametrize("damage", [_truncate, Path.unlink], ids=["truncated", "missing"])
def test_a_damaged_checkpoint_is_refused_by_name(name: str, damage, tmp_path: Path) -> None:
    trained(run_dir=tmp_path)
    latest = sorted((tmp_path / "checkpoints").iterdir())[-1]
    damage(latest / name)
    before = (tmp_path / "metrics.jsonl").read_bytes()
    with pytest.raises(ValueError, match=name):
        trained(run_dir=tmp_path, resume=True)
    assert (tmp_path / "metrics.jsonl").read_bytes() == before


def test_resuming_what_cannot_be_resumed(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="resume needs run_dir"):
        trained(resume=True)
    with pytest.raises(ValueError, match="nothing to resume"):
        trained(run_dir=tmp_path / "none", resume=True)
    trained(run_dir=tmp_path / "run")
    with pytest.raises(FileExistsError, match="holds a run already"):
        trained(run_dir=tmp_path / "run")
    with pytest.raises(ValueError, match=r"config differs .*lr: 0.003 → 0.001"):
        trained(TrainConfig(steps=20, batch_size=16, lr=1e-3), run_dir=tmp_path / "run", resume=True)
    with pytest.raises(ValueError, match="of another model"):
        train(vit(16), images(), CONFIG, run_dir=tmp_path / "run", resume=True, progress=False)


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
    ("field", "message"),
    [
        ({"steps": 0}, "steps must be a positive int, got 0"),
        ({"lr": -1.0}, "lr must be positive"),
        ({"warmup": 2.0}, "warmup must be a share"),
        ({"mixed_precision": "int8"}, "mixed_precision must be"),
        ({"batch_size": 10, "accumulate": 3}, "accumulate must be a divisor of batch_size=10"),
        ({"betas": (0.9, 1.0)}, "betas must be"),
    ],
)
def test_bad_settings(field: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TrainConfig(**field)


def test_a_loss_that_diverges_is_reported_with_its_step() -> None:
    def objective(model, inputs, targets, step):
        return nn.functional.cross_entropy(model(inputs), targets) * (float("nan") if step == 6 else 1)

    with pytest.raises(FloatingPointError, match="loss became nan in step 7 of 20"):
        trained(objective=objective)


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


def _distributed(rank: int, port: int, folder: str) -> None:
    os.environ.update(
        RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port)
    )
    os.environ["ACCELERATE_USE_CPU"] = "true"
    torch.set_num_threads(1)
    _, history = trained()
    if rank == 0:
        Path(folder, "history.json").write_text(json.dumps(history))


def test_two_processes_give_the_curve_of_one(tmp_path: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    torch.multiprocessing.start_processes(_distributed, (port, str(tmp_path)), nprocs=2, start_method="spawn")
    together = json.loads((tmp_path / "history.json").read_text())
    _, alone = trained()
    assert [record["step"] for record in together] == [record["step"] for record in alone]
    for a, b in zip(together, alone, strict=True):
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-4)
