"""From a bank to dense models of any size."""

import copy
from pathlib import Path

import pytest
import torch
from torch import nn

import weit
from tests.weit.toys import SPEC, accuracy, images, pretrained, vit
from weit.engine import TrainConfig, train
from weit.nn.factors import KronFactors

SIZES = [(32, 3), (16, 2), (24, 5), (48, 3), (64, 4)]


@pytest.fixture(scope="module")
def bank() -> weit.TemplateBank:
    return pretrained(100)


@pytest.mark.parametrize("size", SIZES)
def test_any_size_becomes_a_dense_model_ahead_of_a_fresh_one(size: tuple[int, int], bank: weit.TemplateBank) -> None:
    model = vit(*size)
    fresh = accuracy(model)
    shapes = {name: tensor.shape for name, tensor in model.state_dict().items()}
    result = weit.initialize(model, bank, images(), steps=40, batch_size=32, lr=1e-2)
    assert result is model
    assert {name: tensor.shape for name, tensor in model.state_dict().items()} == shapes
    assert not any(isinstance(module, KronFactors) for module in model.modules())
    assert accuracy(model) > max(0.8, fresh + 0.3)


def test_weights_lie_in_the_span_of_the_templates(bank: weit.TemplateBank) -> None:
    model = weit.initialize(vit(48, 4), bank, images(), steps=3, batch_size=16)
    weight = model.blocks[3].mlp.fc1.weight.detach().double()
    blocks = weight.view(weight.shape[0] // 8, 8, -1, 8).transpose(1, 2).reshape(-1, 64)
    templates = bank["fc1"].detach().double().flatten(1)
    residual = blocks - blocks @ torch.linalg.pinv(templates) @ templates
    assert residual.norm() < 1e-5 * blocks.norm()


def test_the_same_arguments_give_the_same_model_and_leave_bank_and_randomness(bank: weit.TemplateBank) -> None:
    before = {name: tensor.clone() for name, tensor in bank.state_dict().items()}
    models = []
    for caller_seed in (1, 2):
        torch.manual_seed(0)
        model = vit(24, 2)
        torch.manual_seed(caller_seed)
        expected = torch.get_rng_state()
        models.append(weit.initialize(model, bank, images(), steps=5, batch_size=16, seed=3).state_dict())
        assert torch.equal(torch.get_rng_state(), expected)
    assert all(torch.equal(a, b) for a, b in zip(*(m.values() for m in models), strict=True))
    assert all(torch.equal(tensor, before[name]) for name, tensor in bank.state_dict().items())


def test_a_bank_without_a_source_starts_from_fresh_scalers() -> None:
    bank = weit.TemplateBank({role: torch.randn(4, 8, 8) for role in ("q", "k", "v", "o", "fc1", "fc2")})
    with pytest.warns(UserWarning, match="bank has no source, so scalers start fresh"):
        model = weit.initialize(vit(), bank, images(), steps=80, batch_size=32, lr=1e-2)
    assert accuracy(model) > 0.8


@pytest.mark.parametrize("start", ["fresh", "extracted"])
def test_training_of_your_own_gives_a_bank_to_start_from(start: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = vit()
    bank = weit.kronify(model, SPEC if start == "fresh" else weit.extract_bank(model, SPEC).bank)
    train(model, images(), TrainConfig(steps=5, batch_size=32, lr=1e-2), progress=False)
    bank.take_source(model, {"width": 32})
    bank.save_pretrained(tmp_path / "bank")
    loaded = weit.TemplateBank.from_pretrained(tmp_path / "bank")
    assert loaded.source.config == {"width": 32}
    x = images()[0]
    assert torch.allclose(weit.initialize(vit(), loaded, steps=0)(x), model(x), atol=1e-5)


def test_an_extracted_bank_gives_the_trained_model_back() -> None:
    torch.manual_seed(0)
    trained = vit().double()
    bank, _ = weit.extract_bank(trained, {"templates": 48, "template_shape": (8, 8)})
    full = max(bank.relative_error.values())
    model = weit.initialize(vit().double(), bank, steps=0)
    x = images()[0].double()
    assert full < 0.5
    for name, tensor in trained.state_dict().items():
        if "norm" in name or "bias" in name:
            assert torch.equal(model.state_dict()[name], tensor)
    assert (model(x) - trained(x)).norm() < 2 * full * trained(x).norm()


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_models_of_any_dtype_start_from_a_bank_that_was_read(dtype: torch.dtype, tmp_path: Path) -> None:
    torch.manual_seed(0)
    trained = vit()
    weit.extract_bank(trained, {"templates": 64, "template_shape": (8, 8)}).bank.save_pretrained(tmp_path / "bank")
    bank = weit.TemplateBank.from_pretrained(tmp_path / "bank")
    inputs, labels = images()
    model = weit.initialize(vit().to(dtype), bank, (inputs.to(dtype), labels), steps=1, lr=1e-6)
    assert {tensor.dtype for tensor in model.state_dict().values()} == {dtype}
    assert bank["q"].dtype == torch.float32
    expected = trained(inputs)
    assert (model(inputs.to(dtype)) - expected).norm() < 0.02 * expected.norm()


def test_a_model_without_numbers_is_refused(bank: weit.TemplateBank) -> None:
    with pytest.raises(ValueError, match="must hold numbers"):
        weit.initialize(vit().to("meta"), bank, steps=0)


def test_a_layout_that_cannot_change_width_says_so_and_takes_any_depth() -> None:
    torch.manual_seed(0)
    trained = vit().double()
    x = images()[0].double()
    bank, _ = weit.extract_bank(trained, {"templates": 64, "template_shape": (8, 8), "layout": "interleaved"})
    assert torch.allclose(weit.initialize(vit().double(), bank, steps=0)(x), trained(x))
    shallow = weit.initialize(vit(depth=2).double(), bank, steps=0)
    del trained.blocks[2]
    assert torch.allclose(shallow(x), trained(x))
    for width in (16, 64):
        model = vit(width).double()
        before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        with pytest.raises(ValueError, match="layers keep their width with layout='interleaved'"):
            weit.initialize(model, bank, steps=0)
        assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("damage", ["role", "kernel", "nan"])
def test_what_does_not_fit_changes_nothing(damage: str, bank: weit.TemplateBank) -> None:
    roles = {role: bank[role].detach() for role in bank.roles}
    data = images()
    if damage == "role":
        del roles["v"]
    elif damage == "kernel":
        roles["v"] = roles["v"][..., None, None]
    else:
        data[0][0] = float("nan")
    model = vit(24, 2)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    damaged = weit.TemplateBank(roles)
    damaged.source = bank.source
    with pytest.raises(ValueError, match={"role": "lacks role 'v'", "kernel": "kernel", "nan": "finite"}[damage]):
        weit.initialize(model, damaged, data, steps=2)
    assert isinstance(model.blocks[0].attn.q, nn.Linear)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"steps": -1}, "steps must be an int from 0, got -1"),
        ({"steps": "3"}, "steps must be an int from 0, got '3'"),
        ({"seed": None}, "seed must be an int from 0, got None"),
        ({"steps": 0, "lr": -1.0}, "lr must be a positive number, got -1.0"),
        ({"speed": 1}, "config has the fields of TrainConfig, but not 'speed'"),
    ],
)
def test_bad_settings_name_themselves(settings: dict, message: str, bank: weit.TemplateBank) -> None:
    with pytest.raises(ValueError, match=message):
        weit.initialize(vit(), bank, images(), **{"steps": 2, **settings})


def test_initializing_learns_without_gradients_around_it(bank: weit.TemplateBank) -> None:
    first = weit.initialize(vit(16, 2), bank, images(), 2)
    with torch.no_grad():
        again = weit.initialize(vit(16, 2), bank, images(), 2)
    assert all(torch.equal(a, b) for a, b in zip(first.state_dict().values(), again.state_dict().values(), strict=True))


@pytest.mark.parametrize("lr", [3e38, 1e20])
def test_weights_that_overflow_in_the_last_step_are_an_error(lr: float, bank: weit.TemplateBank) -> None:
    """At 3e38 the factors do; at 1e20 their products, on templates as large."""
    model = vit()
    before = copy.deepcopy(model.state_dict())
    large = weit.TemplateBank({role: bank[role].detach() * (1e19 if lr < 1e38 else 1) for role in bank})
    with (
        pytest.warns(UserWarning, match="bank has no source"),
        pytest.raises(FloatingPointError, match="became NaN or infinite"),
    ):
        weit.initialize(model, large, images(), steps=1, batch_size=16, lr=lr, weight_decay=0.0)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_a_spec_is_no_bank() -> None:
    with pytest.raises(TypeError, match="bank must be a TemplateBank, got dict"):
        weit.initialize(vit(), SPEC, images())


def test_spec_of_the_toys_is_what_the_bank_has(bank: weit.TemplateBank) -> None:
    assert {tuple(bank[role].shape) for role in bank.roles} == {(SPEC["templates"], *SPEC["template_shape"])}
