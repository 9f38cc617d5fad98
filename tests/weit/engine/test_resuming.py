"""Runs that go on: what they end with, what they refuse, and what a checkpoint must be."""

import json
import random
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from tests.weit.engine.runs import CONFIG, same, trained
from tests.weit.toys import accuracy, images, vit
from weit.engine import TrainConfig, train


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


@pytest.mark.parametrize(
    "draw", [lambda: torch.rand(()), np.random.random, random.random], ids=["torch", "numpy", "python"]
)
def test_a_model_may_draw_from_any_generator(draw, tmp_path: Path) -> None:
    def objective(model, inputs, targets, step):
        return nn.functional.cross_entropy(model(inputs), targets) * (1 + float(draw()))

    whole, history = trained(run_dir=tmp_path, objective=objective)
    shutil.rmtree(tmp_path / "checkpoints/step_00000020")
    resumed, again = trained(run_dir=tmp_path, objective=objective, resume=True)
    assert same(whole, resumed)
    assert again == history


@pytest.mark.parametrize(
    ("scores", "found"),
    [
        ({"score": "high"}, "str as 'score'"),
        ({"score": None}, "NoneType as 'score'"),
        ({"score": torch.ones(2)}, "Tensor as 'score'"),
        (0.5, "float"),
    ],
)
def test_what_evaluate_breaks_costs_no_steps(scores, found: str, tmp_path: Path) -> None:
    def evaluate(model):
        return {"accuracy": accuracy(model), "drawn": torch.rand(())}

    config = replace(CONFIG, evaluate_every=0)
    whole, history = trained(config, run_dir=tmp_path / "whole", evaluate=evaluate)
    with pytest.raises(TypeError, match=f"evaluate must give numbers by name, got {found}"):
        trained(config, run_dir=tmp_path / "broken", evaluate=lambda model: scores)
    assert (tmp_path / "broken/checkpoints/step_00000020").is_dir()
    mended, again = trained(config, run_dir=tmp_path / "broken", evaluate=evaluate, resume=True)
    assert same(whole, mended)
    assert again == history
    assert (tmp_path / "broken/metrics.jsonl").read_bytes() == (tmp_path / "whole/metrics.jsonl").read_bytes()


def _truncate(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:100])


def _flip_a_bit(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[-3] ^= 1
    file.write_bytes(content)


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.safetensors"])
def test_changed_bytes_are_refused_by_name(name: str, tmp_path: Path) -> None:
    whole, _ = trained(run_dir=tmp_path)
    older, latest = sorted((tmp_path / "checkpoints").iterdir())
    _flip_a_bit(latest / name)
    before = (tmp_path / "metrics.jsonl").read_bytes()
    with pytest.raises(ValueError, match=rf"{name} is damaged: it holds other bytes .*{older.name} is older"):
        trained(run_dir=tmp_path, resume=True)
    assert (tmp_path / "metrics.jsonl").read_bytes() == before
    shutil.rmtree(latest)
    assert same(whole, trained(run_dir=tmp_path, resume=True)[0])


def test_a_checkpoint_of_before_there_were_hashes(tmp_path: Path) -> None:
    whole, history = trained(run_dir=tmp_path)
    shutil.rmtree(tmp_path / "checkpoints/step_00000020")
    file = tmp_path / "checkpoints/step_00000015/state.json"
    state = json.loads(file.read_text())
    assert state.pop("sha256").keys() == state["files"].keys()
    del state["record"]
    file.write_text(json.dumps(state))
    resumed, again = trained(run_dir=tmp_path, resume=True)
    assert same(whole, resumed)
    assert again == history


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
    (tmp_path / "file").touch()
    with pytest.raises(FileExistsError, match="is a file, expected a folder or nothing"):
        trained(run_dir=tmp_path / "file")
    trained(run_dir=tmp_path / "run")
    with pytest.raises(FileExistsError, match="holds a run already"):
        trained(run_dir=tmp_path / "run")
    with pytest.raises(ValueError, match=r"config differs .*lr: 0.003 → 0.001"):
        trained(TrainConfig(steps=20, batch_size=16, lr=1e-3), run_dir=tmp_path / "run", resume=True)
    with pytest.raises(ValueError, match="of another model"):
        train(vit(16), images(), CONFIG, run_dir=tmp_path / "run", resume=True, progress=False)
    for folder in (tmp_path / "run/checkpoints").iterdir():
        shutil.rmtree(folder)
    with pytest.raises(ValueError, match=r"config differs .*lr: 0.003 → 0.001"):
        trained(TrainConfig(steps=20, batch_size=16, lr=1e-3), run_dir=tmp_path / "run", resume=True)
    (tmp_path / "run/settings.json").write_text("{")
    with pytest.raises(ValueError, match=r"settings\.json is damaged"):
        trained(run_dir=tmp_path / "run", resume=True)


def test_how_a_run_is_computed_may_change_when_it_goes_on(tmp_path: Path) -> None:
    _, history = trained(run_dir=tmp_path)
    shutil.rmtree(tmp_path / "checkpoints/step_00000020")
    others = {"accumulate": 2, "sharding": "fsdp", "activation_checkpointing": True, "workers": 1}
    _, again = trained(replace(CONFIG, **others), run_dir=tmp_path, resume=True)
    for a, b in zip(history, again, strict=True):
        assert a == pytest.approx(b, rel=1e-2)


@pytest.mark.parametrize("field", [{"accumulate": 2}, {"activation_checkpointing": True}])
def test_a_batch_norm_holds_a_run_to_how_it_is_computed(field: dict, tmp_path: Path) -> None:
    block = nn.Sequential(nn.Linear(16, 8), nn.BatchNorm1d(8), nn.Linear(8, 4))
    model = nn.Sequential(nn.Flatten(), nn.Sequential(block))
    train(model, images(), CONFIG, run_dir=tmp_path, progress=False)
    shutil.rmtree(tmp_path / "checkpoints/step_00000020")
    with pytest.raises(ValueError, match=f"config differs .*{next(iter(field))}: "):
        train(model, images(), replace(CONFIG, **field), run_dir=tmp_path, resume=True, progress=False)
    others = replace(CONFIG, sharding="fsdp", workers=1)
    train(model, images(), others, run_dir=tmp_path, resume=True, progress=False)
