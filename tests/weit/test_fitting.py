"""Fitting scalers, at one rate or the best of several."""

import random
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import weit
from tests.weit.toys import images, pretrained, vit
from weit.engine.held_out import HELD_OUT_LOSS, HeldOut
from weit.engine.run_folder import read_records
from weit.fitting import rate_folder
from weit.scalers import lay_out

FIT = {"steps": 8, "batch_size": 16}


@pytest.fixture(scope="module")
def bank() -> weit.TemplateBank:
    return pretrained()


def target(bank: weit.TemplateBank, *, laid_out: bool = True) -> torch.nn.Module:
    torch.manual_seed(1)
    model = vit(16, 2)
    weit.kronify(model, bank)
    if laid_out:
        lay_out(model, bank.source)
    return model


def numbers(model: torch.nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return all(torch.equal(tensor, other[name]) for name, tensor in one.items())


@pytest.mark.parametrize("lr", [1e-2, [1e-3, 1e-2]])
def test_fitting_trains_all_but_the_templates(lr: float | list[float], bank: weit.TemplateBank) -> None:
    model = target(bank)
    before = numbers(model)
    weit.fit_scalers(model, bank, images(), **FIT, lr=lr)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name]) == name.endswith("templates"), name
    assert all(parameter.requires_grad for parameter in bank.parameters())


@pytest.mark.parametrize("rates", [[1e-5, 1e-2], [1e-2, 1e-5], [1.0, 1e-2], [3e38, 1e-2]])
def test_of_several_rates_the_one_with_the_lowest_held_out_loss_is_kept(
    rates: list[float], bank: weit.TemplateBank
) -> None:
    """1e-5 hardly moves fresh scalers, 1.0 is far too much and 3e38 has no finite loss."""
    data, (chosen, alone, spoiled) = images(200), (target(bank, laid_out=False) for _ in range(3))
    held_out = HeldOut(data, alone, F.cross_entropy, batch_size=16, seed=0)
    records = weit.fit_scalers(chosen, bank, data, **FIT, lr=rates)
    weit.fit_scalers(alone, bank, held_out.rest, **FIT, lr=1e-2)
    assert same(numbers(chosen), numbers(alone))
    assert records[-1][HELD_OUT_LOSS] == held_out(alone.eval())[HELD_OUT_LOSS]
    weit.fit_scalers(spoiled, bank, held_out.rest, **FIT, lr=min(rates) if min(rates) < 1e-2 else 1.0)
    assert records[-1][HELD_OUT_LOSS] < held_out(spoiled.eval())[HELD_OUT_LOSS]


def test_where_no_rate_has_a_finite_loss_the_model_is_as_before(bank: weit.TemplateBank) -> None:
    model = target(bank)
    before = numbers(model)
    with pytest.raises(FloatingPointError, match=r"at each lr of 1e\+38, 2e\+38; lower ones may help"):
        weit.fit_scalers(model, bank, images(), **FIT, lr=[1e38, 2e38])
    assert same(numbers(model), before)


def test_the_callers_randomness_is_left_alone(bank: weit.TemplateBank) -> None:
    items = list(zip(*images(), strict=True))
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1]
    for lr in (1e-2, [1e-3, 1e-2]):
        weit.fit_scalers(target(bank), bank, items, **FIT, lr=lr)
    assert torch.equal(torch.get_rng_state(), states[0])
    assert random.getstate() == states[1]
    assert np.array_equal(np.random.get_state()[1], states[2])


def test_each_of_several_rates_leaves_a_record_and_can_be_resumed(tmp_path: Path, bank: weit.TemplateBank) -> None:
    rates, first, again = [1e-3, 1e-2], target(bank), target(bank)
    weit.fit_scalers(first, bank, images(), **FIT, lr=rates, run_dir=tmp_path)
    losses = [read_records(rate_folder(tmp_path, lr) / "metrics.jsonl")[-1][HELD_OUT_LOSS] for lr in rates]
    assert losses[0] != losses[1]
    with pytest.raises(FileExistsError, match="holds a run already"):
        weit.fit_scalers(again, bank, images(), **FIT, lr=rates, run_dir=tmp_path)
    rate_folder(tmp_path, 3e-3).mkdir()
    weit.fit_scalers(again, bank, images(), **FIT, lr=[*rates, 2e-3, 3e-3], run_dir=tmp_path, resume=True)
    for lr in (2e-3, 3e-3):  # which an interrupted run had not come to, or hardly
        assert (rate_folder(tmp_path, lr) / "metrics.jsonl").is_file()
    assert same(numbers(again), numbers(first))


def test_numpys_numbers_and_others_that_look_alike_are_rates(tmp_path: Path, bank: weit.TemplateBank) -> None:
    one, other = target(bank), target(bank)
    weit.fit_scalers(one, bank, images(), **FIT, lr=np.array([1e-3, 1e-2]), run_dir=tmp_path / "several")
    weit.fit_scalers(other, bank, images(), **FIT, lr=(1e-3, 1e-2, 1e-3))
    assert same(numbers(one), numbers(other))
    weit.fit_scalers(one, bank, images(), **FIT, lr=np.float32(1e-3), run_dir=tmp_path / "one")
    near = [1e-3, 1e-3 * (1 + 1e-9)]
    weit.fit_scalers(one, bank, images(), **FIT, lr=near, run_dir=tmp_path / "near")
    assert len(list((tmp_path / "near").iterdir())) == 2


def test_after_an_error_on_the_way_the_model_is_as_before(tmp_path: Path, bank: weit.TemplateBank) -> None:
    rates, model = [1e-3, 1e-2], target(bank)
    weit.fit_scalers(model, bank, images(), **FIT, lr=rates, run_dir=tmp_path)
    damaged = next((rate_folder(tmp_path, 1e-2) / "checkpoints").rglob("model*.safetensors"))
    damaged.write_bytes(damaged.read_bytes()[:-4])
    before = numbers(model)
    with pytest.raises(ValueError, match="damaged"):
        weit.fit_scalers(model, bank, images(), **FIT, lr=rates, run_dir=tmp_path, resume=True)
    assert same(numbers(model), before)
    shutil.rmtree(rate_folder(tmp_path, 1e-3))
    with pytest.raises(FileExistsError, match=r"lr0\.01"):
        weit.fit_scalers(model, bank, images(), **FIT, lr=rates, run_dir=tmp_path)
    assert not rate_folder(tmp_path, 1e-3).exists()  # said before anything is trained


class Noting(torch.nn.Module):
    """A model with state that is no tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.model = vit(16, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x)

    def get_extra_state(self) -> dict[str, str]:
        return {"note": "mine"}

    def set_extra_state(self, state: dict[str, str]) -> None:
        assert state == {"note": "mine"}


def test_state_that_is_no_tensor_is_no_hindrance() -> None:
    config = weit.PretrainConfig(steps=2, batch_size=8, spec={"templates": 2, "template_shape": (8, 8)})
    rules = {r".*\.fc1": "fc1"}
    bank = weit.pretrain(Noting(), images(), config, rules=rules, progress=False)
    weit.initialize(Noting(), bank, images(), **FIT, rules=rules)
    extracted, _ = weit.extract_bank(Noting(), {"templates": 2, "template_shape": (8, 8)}, rules=rules)
    weit.initialize(Noting(), extracted, steps=0, rules=rules)


@pytest.mark.parametrize(
    ("lr", "message"),
    [
        ([], "lr must be a positive number or several, got none"),
        ([[1e-3]], r"lr must be a positive number, got \[0.001\]"),
        ([1e-3, 0.0], "lr must be a positive number, got 0.0"),
        (("fast", 1e-3), "lr must be a positive number, got 'fast'"),
        (None, "lr must be a positive number, got None"),
    ],
)
def test_bad_rates_name_themselves(lr: object, message: str, bank: weit.TemplateBank) -> None:
    model = target(bank)
    before = numbers(model)
    with pytest.raises(ValueError, match=message):
        weit.fit_scalers(model, bank, images(), **FIT, lr=lr)
    assert same(numbers(model), before)


def test_a_bank_and_a_model_made_with_it_are_needed(bank: weit.TemplateBank) -> None:
    other = vit()
    weit.kronify(other, {"templates": 2, "template_shape": (8, 8)})
    for model in (other, vit()):
        with pytest.raises(ValueError, match="must be kronified with bank"):
            weit.fit_scalers(model, bank, images())
    with pytest.raises(TypeError, match="bank must be a TemplateBank, got NoneType"):
        weit.fit_scalers(vit(), None, images())
    with pytest.raises(TypeError, match=r"model must be an nn\.Module, got str"):
        weit.fit_scalers("vit", bank, images())
