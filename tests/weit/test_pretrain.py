"""Pre-training: what is learned and kept, distillation, starts, resuming, and what is refused."""

import copy
import pickle
import shutil
from pathlib import Path

import pytest
import torch

import weit
from tests.weit.toys import SPEC, accuracy, images, pretrained, vit
from weit.engine import TrainConfig, train
from weit.engine.soft_targets import distillation

CONFIG = weit.PretrainConfig(steps=12, batch_size=16, spec=SPEC, checkpoint_every=4)


def state(bank: weit.TemplateBank) -> dict[str, torch.Tensor]:
    return {**bank.state_dict(), **bank.source.state}


def same(a: weit.TemplateBank, b: weit.TemplateBank) -> bool:
    return state(a).keys() == state(b).keys() and all(torch.equal(state(a)[k], v) for k, v in state(b).items())


def test_learns_at_every_size_through_the_constraint() -> None:
    torch.manual_seed(0)
    model = vit()
    config = weit.PretrainConfig(steps=100, batch_size=32, spec=SPEC)
    bank = weit.pretrain(model, images(), config, smaller=[vit(16, 2)], progress=False, model_config={"width": 32})
    assert isinstance(model.blocks[0].attn.q, weit.KronLinear)
    assert model.blocks[0].attn.q.templates is model.blocks[2].attn.q.templates is bank["q"]
    assert accuracy(model) > 0.9
    assert bank.source.config == {"width": 32}
    assert not any(name.endswith("templates") for name in bank.source.state)
    assert torch.equal(bank.source.state["head.bias"], model.head.bias)
    for size in ((32, 3), (16, 2)):
        assert accuracy(weit.initialize(vit(*size), bank, steps=0)) > 0.8, size


def test_rules_may_name_layers_that_a_smaller_size_lacks() -> None:
    rules = {r"blocks\.[01]\.mlp\.fc1": "first", r"blocks\.2\.mlp\.fc1": "last"}
    bank = weit.pretrain(vit(), images(), CONFIG, smaller=[vit(16, 2)], rules=rules, progress=False)
    assert bank.roles == ("first", "last")
    weit.initialize(vit(16, 2), bank, rules=rules)
    weit.initialize(vit(16, 2), bank, rules={"norm": None, **rules})
    with pytest.raises(ValueError, match=r"rules\['typo'\] names no"):
        weit.pretrain(vit(), images(), CONFIG, rules={**rules, "typo": "a"}, progress=False)


def test_the_seed_decides_and_the_arguments_stay() -> None:
    small = vit(16, 2)
    names = set(small.state_dict())
    torch.manual_seed(0)
    first = weit.pretrain(vit(), images(), CONFIG, smaller=[small], progress=False)
    torch.manual_seed(0)
    second = weit.pretrain(vit(), images(), CONFIG, smaller=[small], progress=False)
    assert same(first, second)
    assert set(small.state_dict()) == names


def test_resuming_gives_the_same_bank(tmp_path: Path) -> None:
    torch.manual_seed(0)
    whole = weit.pretrain(vit(), images(), CONFIG, smaller=[vit(16, 2)], run_dir=tmp_path / "a", progress=False)

    class Stop(Exception):
        pass

    calls = []

    def loss(logits, targets):
        calls.append(1)
        if len(calls) == 11:
            raise Stop
        return torch.nn.functional.cross_entropy(logits, targets)

    torch.manual_seed(0)
    model = vit()
    with pytest.raises(Stop):
        weit.pretrain(model, images(), CONFIG, smaller=[vit(16, 2)], run_dir=tmp_path / "b", loss=loss, progress=False)
    shutil.copytree(tmp_path / "b", tmp_path / "c")
    torch.manual_seed(1)
    again = weit.pretrain(
        vit(), images(), CONFIG, smaller=[vit(16, 2)], run_dir=tmp_path / "b", resume=True, progress=False
    )
    assert same(whole, again)
    onward = weit.pretrain(
        model, images(), CONFIG, smaller=[vit(16, 2)], run_dir=tmp_path / "c", resume=True, progress=False
    )
    assert same(whole, onward)  # with the interrupted model itself, which is on its bank
    assert onward["q"] is model.blocks[0].attn.q.templates


def test_resuming_wants_the_same_sizes_rules_and_teacher(tmp_path: Path) -> None:
    rules = {r".*\.fc1": "a", r".*\.fc[12]": "b"}
    run = {"smaller": [vit(16, 2)], "rules": rules, "run_dir": tmp_path, "progress": False}
    weit.pretrain(vit(), images(), CONFIG, **run)
    for change in (
        {"smaller": [vit(24, 2)]},
        {"smaller": []},
        {"rules": dict(reversed(rules.items()))},
        {"rules": None},
        {"teacher": vit()},
    ):
        with pytest.raises(ValueError, match=f"{next(iter(change))}: .* → "):
            weit.pretrain(vit(), images(), CONFIG, **{**run, **change, "resume": True})
    weit.pretrain(vit(), images(), CONFIG, **run, resume=True)


def test_extracting_from_a_trained_model_starts_near_it() -> None:
    torch.manual_seed(0)
    teacher = vit()
    train(teacher, images(), TrainConfig(steps=80, batch_size=32, lr=3e-3), progress=False)
    full = {"templates": 48, "template_shape": (8, 8)}
    config = weit.PretrainConfig(steps=1, lr=1e-9, spec=full, start="extract", full_share=1.0)
    bank = weit.pretrain(teacher, images(), config, progress=False)
    assert max(bank.relative_error.values()) > 0
    assert accuracy(teacher) > 0.8


def test_distillation_pulls_towards_the_teacher() -> None:
    torch.manual_seed(0)
    teacher = vit()
    train(teacher, images(), TrainConfig(steps=80, batch_size=32, lr=3e-3), progress=False)
    inputs, _ = images()
    nonsense = torch.zeros(len(inputs), dtype=torch.int64)
    config = weit.PretrainConfig(steps=100, batch_size=32, spec=SPEC, alpha=50.0)
    model = vit()
    weit.pretrain(model, (inputs, nonsense), config, teacher=teacher, progress=False)
    assert accuracy(model) > 0.8
    assert all(parameter.requires_grad for parameter in teacher.parameters())


def test_distillation_loss() -> None:
    logits, answers = torch.randn(6, 4, dtype=torch.float64), torch.randn(6, 4, dtype=torch.float64)
    p, q = (answers / 3).softmax(-1), (logits / 3).softmax(-1)
    assert distillation(logits, answers, 3.0).item() == pytest.approx(9 * (p * (p / q).log()).sum(-1).mean().item())
    assert distillation(answers, answers, 2.0).item() == pytest.approx(0, abs=1e-12)
    with pytest.raises(ValueError, match="teacher must answer like the model"):
        distillation(logits, answers[:, :3], 2.0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"full_share": 1.5}, "full_share must be a share"),
        ({"start": "zero"}, "start must be one of"),
        ({"alpha": -1.0}, "alpha must be from 0"),
        ({"temperature": 0.0}, "temperature must be positive"),
        ({"spec": {"count": 3}}, "spec has fields"),
    ],
)
def test_bad_settings(change: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        weit.PretrainConfig(**change)


X, Y = images()


@pytest.mark.parametrize(
    ("data", "error", "message"),
    [
        ((X / 0, Y), ValueError, "inputs must be finite"),
        ((X, Y + 1), ValueError, "targets must be below the 4 outputs"),
        ((X.double(), Y), ValueError, r"data must suit model, which is of float32, .* \(1, 1, 4, 4\) of float64"),
        ((X.expand(-1, 3, -1, -1), Y), ValueError, r"data must suit model, .* \(1, 3, 4, 4\) of float32: .*channels"),
        ((X, Y.int()), TypeError, "targets must be labels"),
        ([(X[:8], Y[:8])] * 2, ValueError, "data must suit model, .*batched"),
        ({"x": X, "y": Y}, TypeError, "data must be a data set"),
    ],
)
def test_bad_data_leaves_the_model_dense(data, error: type[Exception], message: str) -> None:
    model = vit()
    with pytest.raises(error, match=message):
        weit.pretrain(model, data, CONFIG, progress=False)
    assert isinstance(model.blocks[0].attn.q, torch.nn.Linear)
    weit.pretrain(model, (X, Y), CONFIG, progress=False)  # so it may be tried again


def test_a_teacher_that_answers_otherwise_leaves_the_model_dense() -> None:
    model = vit()
    with pytest.raises(ValueError, match="teacher must answer like the model"):
        weit.pretrain(model, (X, Y), CONFIG, teacher=vit(classes=5), progress=False)
    assert isinstance(model.blocks[0].attn.q, torch.nn.Linear)


def test_data_are_drawn_by_the_training_alone() -> None:
    drawn = []

    class Noting(torch.utils.data.Dataset):
        def __len__(self) -> int:
            return len(X)

        def __getitem__(self, item: int) -> tuple[torch.Tensor, torch.Tensor]:
            drawn.append(item)
            return X[item], Y[item]

    train(vit(), Noting(), TrainConfig(steps=12, batch_size=16), progress=False)
    alone, drawn[:] = len(drawn), []
    weit.pretrain(vit(), Noting(), CONFIG, progress=False)
    assert len(drawn) == alone


def test_losses_over_batches_are_given_batches() -> None:
    sizes = set()

    def loss(logits, targets):
        sizes.add(len(targets))
        return torch.nn.functional.cross_entropy(logits, targets)

    weit.pretrain(vit(), (X, Y), CONFIG, loss=loss, progress=False)
    assert sizes == {16}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"model": None}, "model must be an nn.Module, got NoneType"),
        ({"smaller": 3}, "smaller must be a sequence of nn.Modules, got int"),
        ({"smaller": [None]}, "smaller must be a sequence of nn.Modules"),
        ({"teacher": 3}, "teacher must be an nn.Module, got int"),
        ({"bank": SPEC}, "bank must be a TemplateBank, got dict"),
        ({"config": 3}, "config must be a PretrainConfig or a mapping with its fields, got int"),
        ({"loss": "ce"}, "loss must be a function of outputs and targets, got str"),
        ({"model_config": {"model": object()}}, "model_config must be JSON: Object of type object"),
        ({"model_config": 3}, "model_config must be a mapping, got int"),
        ({"rules": {3: "a"}}, "rules must map patterns, which are strings, to roles, got 3"),
    ],
)
def test_wrong_types_name_themselves(arguments: dict, message: str) -> None:
    model = vit()
    with pytest.raises(TypeError, match=message):
        weit.pretrain(**{"model": model, "data": images(), "config": CONFIG, "progress": False, **arguments})
    assert isinstance(model.blocks[0].attn.q, torch.nn.Linear)


def test_a_kronified_model_goes_on_with_its_own_templates() -> None:
    model, fused = vit(), vit()
    given = weit.kronify(model, {**SPEC, "layout": "interleaved"})
    bank = weit.pretrain(model, images(), CONFIG, progress=False)
    assert bank.roles == given.roles
    assert all(bank[role] is given[role] for role in bank)
    assert bank.layout == "interleaved"
    assert bank.source is not None
    rules = {r".*\.fc1": ("a", "b"), r".*\.fc2": "c"}
    weit.kronify(fused, SPEC, rules=rules)
    copied = pickle.loads(pickle.dumps(copy.deepcopy(fused)))
    bank = weit.pretrain(copied, images(), CONFIG, smaller=[vit(16, 2)], rules=rules, progress=False)
    assert bank.roles == ("a", "b", "c")
    assert bank["b"] is copied.blocks[2].mlp.fc1.parts[1].templates


def test_a_kronified_model_whose_roles_are_not_known_needs_its_bank() -> None:
    def by_hand(model, templates):
        model.blocks[0].attn.k = weit.KronLinear(32, 32, templates=templates)

    def other_templates(model, templates):
        model.blocks[1].attn.q.templates = torch.nn.Parameter(templates.detach().clone())

    def other_layout(model, templates):
        model.blocks[1].attn.q.layout = "interleaved"

    for spoil, message in (
        (by_hand, r"'blocks\.0\.attn\.k' has no role"),
        (other_templates, r"'blocks\.1\.attn\.q' has other templates than the layers of role 'q'"),
        (other_layout, "a bank is of one layout, but the model has layers of the layouts block and interleaved"),
    ):
        model = vit()
        spoil(model, weit.kronify(model, SPEC)["q"])
        with pytest.raises(ValueError, match=f"bank must be given for this kronified model: {message}"):
            weit.pretrain(model, images(), CONFIG, progress=False)


def test_the_bank_that_is_given_must_be_that_of_a_kronified_model() -> None:
    model = vit()
    bank = weit.kronify(model, SPEC)
    foreign = weit.TemplateBank({role: torch.randn(4, 8, 8) for role in bank.roles})
    with pytest.raises(ValueError, match="bank must hold the templates of the kronified model"):
        weit.pretrain(model, images(), CONFIG, bank=foreign, progress=False)
    before = bank["q"].detach().clone()
    assert weit.pretrain(model, images(), CONFIG, bank=bank, progress=False) is bank
    assert not torch.equal(bank["q"], before)


def test_goes_on_from_all_that_a_bank_has() -> None:
    config = weit.PretrainConfig(steps=1, batch_size=16, lr=1e-9)
    bank, model = pretrained(), vit()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(ValueError, match="targets must be below the 4 outputs"):
        weit.pretrain(model, (X, Y + 1), config, bank=bank, progress=False)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert weit.pretrain(model, images(), config, bank=bank, progress=False) is bank
    assert accuracy(model) > 0.9


def test_saved_and_loaded_banks_are_the_same(tmp_path: Path) -> None:
    bank = pretrained(5)
    bank.save_pretrained(tmp_path / "bank")
    assert same(bank, weit.TemplateBank.from_pretrained(tmp_path / "bank"))
