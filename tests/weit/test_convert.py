import copy
import pickle
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn

from weit import (
    BankSpec,
    KronConv2d,
    KronFusedLinear,
    KronLinear,
    TemplateBank,
    extract_bank,
    kronify,
    materialize,
)
from weit.convert import bank_of


class Model(nn.Module):
    """A convolution, fused and plain linear layers in two blocks, and a head that stays dense."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(1, 16, 3, 2, 1)
        self.norm = nn.BatchNorm2d(16)
        self.blocks = nn.ModuleList(
            nn.ModuleDict(
                {"qkv": nn.Linear(16, 48, bias=i == 0), "proj": nn.Linear(16, 16), "conv": nn.Conv2d(16, 16, 3, 1, 1)}
            )
            for i in range(2)
        )
        self.head = nn.Linear(16, 10)

    def forward(self, x):
        x = self.norm(self.stem(x))
        for block in self.blocks:
            x = F.relu(x + block["conv"](x))
            tokens = x.flatten(2).mT
            q, k, v = block["qkv"](tokens).chunk(3, -1)
            x = x + block["proj"](F.scaled_dot_product_attention(q, k, v)).mT.view_as(x)
        return self.head(x.mean((2, 3)))


RULES = {
    r"blocks\.\d\.qkv": ("q", "k", "v"),
    r"blocks\.\d\.proj": "o",
    r"blocks\.\d\.conv": "conv",
}
SPEC = BankSpec(templates={"q": 2, "k": 2, "v": 3, "o": 3, "conv": 4}, template_shape=(4, 8))


def images():
    return torch.randn(4, 1, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def step(model):
    model.zero_grad()
    model(images()).square().sum().backward()
    torch.optim.SGD(model.parameters(), 1e-2).step()


def names_of_ours(model):
    return [type(m).__name__ for m in model.modules() if type(m).__module__.split(".")[0] == "weit"]


@pytest.mark.parametrize("layout", ["block", "interleaved"])
def test_there_and_back_again(layout):
    torch.manual_seed(0)
    model = Model().double()
    shapes = {k: v.shape for k, v in model.state_dict().items()}
    spec = BankSpec(SPEC.templates, SPEC.template_shape, layout)
    bank = kronify(model, spec, rules=RULES)
    assert {role: tuple(bank[role].shape) for role in bank.roles} == {
        "q": (2, 4, 8),
        "k": (2, 4, 8),
        "v": (3, 4, 8),
        "o": (3, 4, 8),
        "conv": (4, 4, 8, 3, 3),
    }
    first, second = model.blocks
    assert [type(first[name]) for name in ("qkv", "proj", "conv")] == [KronFusedLinear, KronLinear, KronConv2d]
    assert type(model.stem) is nn.Conv2d
    assert type(model.head) is nn.Linear
    assert first["proj"].templates is second["proj"].templates is bank["o"]
    assert first["conv"].templates is second["conv"].templates is bank["conv"]
    assert first["qkv"].parts[2].templates is second["qkv"].parts[2].templates is bank["v"]
    assert all(part.layout == layout for part in first["qkv"].parts)

    before = bank["conv"].detach().clone()
    step(model)
    assert not torch.equal(bank["conv"], before)
    model.eval()
    expected = model(images())
    assert materialize(model) is model
    torch.testing.assert_close(model(images()), expected, rtol=1e-12, atol=1e-12)
    assert names_of_ours(model) == []
    assert {k: v.shape for k, v in model.state_dict().items()} == shapes
    assert not any(module.training for module in model.modules())
    pickle.dumps(model.head)


def test_a_bank_is_made_anew_from_the_layers_that_kronify_made():
    model = Model()
    bank = kronify(model, SPEC, rules=RULES)
    again = bank_of(model)
    assert (set(again.roles), again.layout, again.source) == (set(bank.roles), bank.layout, None)
    assert all(again[role] is bank[role] for role in bank)
    assert "role='conv'" in repr(model.blocks[0]["conv"])
    copied = copy.deepcopy(model)
    assert bank_of(copied)["v"] is copied.blocks[1]["qkv"].parts[2].templates
    model.head = KronLinear(16, 10)
    with pytest.raises(ValueError, match="'head' has no role, as kronify did not make it"):
        bank_of(model)
    with pytest.raises(ValueError, match="a bank is of one layout, but the model has no Kron layers"):
        bank_of(materialize(model))


def test_biases_are_copied_and_weights_have_the_variance_of_fresh_layers():
    torch.manual_seed(0)
    model = nn.Sequential(*(nn.Linear(128, 128) for _ in range(4)))
    dense = copy.deepcopy(model)
    kronify(model, {}, rules={r"\d": "all"})
    for kron, linear in zip(model, dense, strict=True):
        assert torch.equal(kron.bias, linear.bias)
        assert kron.bias is not linear.bias
        assert abs(kron.weight.var() / linear.weight.var() - 1) < 0.1
    fused = nn.Sequential(nn.Linear(8, 12))
    bias = fused[0].bias.detach().clone()
    kronify(fused, {}, rules={"0": ("a", "b", "c")})
    assert torch.equal(fused[0].bias, bias)


def test_two_models_on_one_bank_learn_together():
    torch.manual_seed(0)
    big, small = Model().double(), Model().double()
    bank = kronify(big, SPEC, rules=RULES)
    assert kronify(small, bank, rules=RULES) is bank
    assert big.blocks[0]["proj"].templates is small.blocks[1]["proj"].templates
    assert big.blocks[0]["proj"].scalers is not small.blocks[0]["proj"].scalers


def test_kronify_follows_the_seed():
    models = []
    for _ in range(2):
        torch.manual_seed(3)
        models.append(Model())
        kronify(models[-1], SPEC, rules=RULES)
    assert all(torch.equal(v, models[1].state_dict()[k]) for k, v in models[0].state_dict().items())


@pytest.mark.parametrize("bias", [True, False])
def test_dtype_training_flag_and_what_is_frozen_survive_both_ways(bias):
    model = nn.Sequential(*(nn.Linear(12, 12, bias) for _ in range(3))).to(torch.bfloat16)
    model[0].eval()
    model[0].weight.requires_grad_(False)
    model[1].eval()
    with torch.no_grad():
        kronify(model, {"templates": 2}, rules={"0": ("a", "b"), "1": "c", "2": "d"})
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert [m.training for m in model] == [False, False, True]
    assert not any(part.scalers.requires_grad or part.training for part in model[0].parts)
    assert all(part.bias is None or part.bias.requires_grad for part in model[0].parts)
    assert model[1].scalers.requires_grad
    assert not any(part.templates.requires_grad for part in model[0].parts)
    materialize(model)
    assert [(m.training, m.weight.requires_grad) for m in model] == [(False, False), (False, True), (True, True)]
    assert all((m.bias is not None) == bias for m in model)
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}


def test_frozen_layers_come_back_frozen_on_templates_that_learn():
    model = nn.Sequential(*(nn.Linear(8, 8) for _ in range(4)))
    model[0].weight.requires_grad_(False)
    model[1].requires_grad_(False)
    bank = kronify(model, {"templates": 2}, rules={"[02]": "mixed", "1": "frozen", "3": "learns"})
    assert [bank[role].requires_grad for role in ("mixed", "frozen", "learns")] == [True, False, True]
    assert not any(parameter.requires_grad for parameter in model[1].parameters())
    materialize(model)
    assert [m.weight.requires_grad for m in model] == [False, False, True, True]
    kronify(model, bank, rules={"[02]": "mixed", "1": "frozen", "3": "learns"})
    materialize(model)
    assert [m.weight.requires_grad for m in model] == [False, False, True, True]


def test_a_layer_used_at_two_places_stays_one_layer():
    shared = nn.Linear(8, 8)
    model = nn.Sequential(shared, nn.ReLU(), nn.ModuleDict({"inner": shared})["inner"], nn.Linear(8, 8))
    kronify(model, {"templates": 2}, rules={"[03]": "a"})
    assert model[0] is model[2]
    assert isinstance(model[0], KronLinear)
    materialize(model)
    assert model[0] is model[2]
    assert names_of_ours(model) == []


def test_a_meta_model_is_converted_without_storage():
    with torch.device("meta"):
        model = Model()
    bank = kronify(model, SPEC, rules=RULES)
    model.to_empty(device="cpu")
    assert model.blocks[0]["proj"].templates is model.blocks[1]["proj"].templates
    bank.to_empty(device="cpu")
    assert bank["o"] is model.blocks[0]["proj"].templates


@pytest.mark.parametrize(
    "layer",
    [KronLinear(6, 4), KronConv2d(6, 4, 3), KronFusedLinear([KronLinear(6, 4), KronLinear(6, 3)])],
)
def test_materialize_takes_a_single_layer(layer):
    dense = materialize(layer)
    assert type(dense) in (nn.Linear, nn.Conv2d)
    torch.testing.assert_close(dense.weight, layer.weight)


def test_materialize_makes_each_weight_once(monkeypatch):
    made, to_linear = [], KronLinear.to_linear
    monkeypatch.setattr(KronLinear, "to_linear", lambda layer: made.append(layer) or to_linear(layer))
    model = Model()
    kronify(model, SPEC, rules=RULES)
    materialize(model)
    assert len(made) == 2 * 4  # three parts of qkv, and proj


def test_materialize_leaves_a_dense_model_alone_and_refuses_the_rest():
    model = Model()
    modules = list(model.modules())
    assert materialize(model) is model
    assert list(model.modules()) == modules
    with pytest.raises(TypeError, match=r"model must be an nn\.Module, got dict"):
        materialize({})


@pytest.fixture(scope="module")
def trained():
    """The model above, trained for a moment on real digits."""
    torch.manual_seed(0)
    digits = load_digits()
    x = torch.tensor(digits.images / 16).unsqueeze(1)
    y = torch.tensor(digits.target)
    model = Model().double()
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
    for i in range(60):
        batch = torch.arange(i * 64, i * 64 + 64) % len(x)
        loss = F.cross_entropy(model(x[batch]), y[batch])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 1.5
    return model.eval()


FULL = {"q": 16, "k": 16, "v": 16, "o": 16, "conv": 16}  # two layers of 4 × 2 blocks each


@pytest.mark.parametrize("layout", ["block", "interleaved"])
def test_error_falls_with_the_number_of_templates_to_zero_at_full_rank(trained, layout):
    errors = []
    for count in (1, 2, 4, 8, 12, 16):
        bank, scalers = extract_bank(trained, BankSpec(count, (4, 8), layout), rules=RULES)
        errors.append(bank.relative_error)
        assert set(scalers) == {
            f"blocks.{i}.{name}"
            for i in range(2)
            for name in ("qkv.parts.0", "qkv.parts.1", "qkv.parts.2", "proj", "conv")
        }
    for role in FULL:
        falling = [error[role] for error in errors]
        assert all(a > b + 1e-3 for a, b in pairwise(falling)), role
        assert falling[-1] < 1e-12


@pytest.mark.parametrize("layout", ["block", "interleaved"])
def test_a_model_on_its_extracted_bank_is_the_model(trained, layout):
    before = {k: v.clone() for k, v in trained.state_dict().items()}
    bank, scalers = extract_bank(trained, BankSpec(FULL, (4, 8), layout), rules=RULES)
    assert all(torch.equal(v, before[k]) for k, v in trained.state_dict().items())
    model = copy.deepcopy(trained)
    kronify(model, bank, rules=RULES)
    assert torch.equal(model.blocks[1]["qkv"].parts[2].scalers, scalers["blocks.1.qkv.parts.2"])
    torch.testing.assert_close(model(images()), trained(images()))
    assert all(torch.equal(tensor, model.state_dict()[name]) for name, tensor in bank.source.state.items())


def test_a_source_gives_scalers_alone_and_none_to_another_family(trained):
    bank, _ = extract_bank(trained, BankSpec(3, (4, 8)), rules=RULES)
    model = Model().double()
    stem, bias = model.stem.weight.detach().clone(), model.blocks[1]["proj"].bias.detach().clone()
    kronify(model, bank, rules=RULES)
    assert torch.equal(model.stem.weight, stem)
    assert torch.equal(model.blocks[1]["proj"].bias, bias)
    other, fresh = (nn.Sequential(nn.Linear(16, 16).double()) for _ in range(2))
    bank.source.head_dims, other.head_dim = [8], 4  # which no scalers are made for
    torch.manual_seed(3)
    with pytest.warns(UserWarning, match="scalers are fresh: bank.source is of another model family"):
        kronify(other, bank, rules={"0": "o"})
    torch.manual_seed(3)
    kronify(fresh, TemplateBank({"o": bank["o"]}), rules={"0": "o"})
    assert torch.equal(other[0].scalers, fresh[0].scalers)


def test_relative_error_is_that_of_the_role(trained):
    bank, scalers = extract_bank(trained, BankSpec(3, (4, 8)), rules=RULES)
    missed = total = 0.0
    for i in range(2):
        layer = KronLinear(16, 16, templates=bank["o"])
        layer.scalers.data = scalers[f"blocks.{i}.proj"]
        dense = trained.blocks[i]["proj"].weight
        missed += (layer.weight - dense).square().sum().item()
        total += dense.square().sum().item()
    assert bank.relative_error["o"] == pytest.approx((missed / total) ** 0.5)


def test_an_extracted_bank_survives_its_files(trained, tmp_path):
    bank, _ = extract_bank(trained, BankSpec(3, (4, 8)), rules=RULES)
    bank.save_pretrained(tmp_path / "bank")
    loaded = TemplateBank.from_pretrained(tmp_path / "bank")
    assert loaded.relative_error == bank.relative_error
    assert loaded.source.config == {"extracted_from": "Model"}
    assert all(torch.equal(v, bank.source.state[k]) for k, v in loaded.source.state.items())


def test_a_shared_layer_is_extracted_once():
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU())
    model.append(model[0])
    bank, scalers = extract_bank(model, BankSpec(1, (8, 8)), rules={"0": "a"})
    assert list(scalers) == ["0"]
    assert bank.relative_error["a"] < 1e-6
    assert set(bank.source.state) == {"0.scalers", "0.bias", "2.scalers", "2.bias"}


def test_more_templates_than_the_rank_leave_nothing_behind(trained):
    bank, _ = extract_bank(trained, BankSpec(17, (4, 8)), rules=RULES)  # the rank is 16
    assert bank["q"].shape[0] == 17
    assert bank.relative_error["q"] < 1e-6


def test_what_cannot_be_extracted_is_named(trained):
    broken = copy.deepcopy(trained)
    broken.blocks[1]["proj"].weight.data[0, 0] = float("nan")
    with pytest.raises(ValueError, match=r"the weight of 'blocks.1.proj' .* NaN"):
        extract_bank(broken, SPEC, rules=RULES)
    with pytest.raises(ValueError, match="on the meta device"):
        extract_bank(broken.to("meta"), SPEC, rules=RULES)
    with pytest.raises(TypeError, match="spec must be a BankSpec or a mapping"):
        extract_bank(trained, 8, rules=RULES)
