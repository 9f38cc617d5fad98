import pickle

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from tests.weit.disk import full_disk, tree
from weit import BankSpec, KronLinear, Source, TemplateBank


def make_bank(source=True):
    torch.manual_seed(0)
    bank = TemplateBank({"q": torch.randn(4, 8, 8), "stage1_3x3": torch.randn(2, 4, 8, 3, 3).half()}, "interleaved")
    if source:
        tied = torch.randn(3, 5)
        state = {"head.weight": tied, "embed.weight": tied, "bn.num_batches_tracked": torch.tensor(7)}
        bank.source = Source(
            {**state, "blocks.0.q.scalers": torch.randn(4, 2, 3).mT}, {"model": "vit", "width": 64}, [8]
        )
    bank.relative_error = {"q": 0.25}
    return bank


def assert_same(a, b):
    assert (a.roles, a.layout, a.relative_error) == (b.roles, b.layout, b.relative_error)
    torch.testing.assert_close(dict(a.named_parameters()), dict(b.named_parameters()), rtol=0, atol=0)
    assert (a.source is None) == (b.source is None)
    if a.source is not None:
        assert (a.source.config, a.source.head_dims) == (b.source.config, b.source.head_dims)
        torch.testing.assert_close(a.source.state, b.source.state, rtol=0, atol=0)


def test_bank_is_a_module_with_roles():
    bank = make_bank()
    assert bank.roles == ("q", "stage1_3x3")
    assert "q" in bank
    assert "k" not in bank
    assert bank.num_parameters() == 4 * 64 + 2 * 32 * 9 == sum(p.numel() for p in bank.parameters())
    assert isinstance(bank["q"], nn.Parameter)
    assert list(bank) == ["q", "stage1_3x3"]
    assert len(bank) == 2
    with pytest.raises(KeyError, match="no role 'k' in this bank, only q, stage1_3x3"):
        bank["k"]
    bank.double()
    assert bank["stage1_3x3"].dtype == torch.float64


def test_a_given_parameter_is_kept():
    templates = nn.Parameter(torch.randn(2, 4, 4))
    assert TemplateBank({"a": templates})["a"] is templates


@given(st.sampled_from(["training", "forward", "keys", "source", "layout", "roles", "0", "a-b", "T", "_parameters"]))
def test_any_role_name_works(role):
    bank = TemplateBank({role: torch.ones(1, 2, 2)})
    assert bank[role].shape == (1, 2, 2)
    assert bank.training
    bank.load_state_dict({k: v + 1 for k, v in bank.state_dict().items()}, assign=True)
    assert bank[role].sum() == 8


@pytest.mark.parametrize("source", [True, False])
def test_save_and_load(tmp_path, source):
    bank = make_bank(source)
    bank.save_pretrained(tmp_path / "runs" / "bank")
    names = {"config.json", "bank.safetensors"} | ({"source.safetensors"} if source else set())
    assert set(tree(tmp_path / "runs" / "bank")) == names
    assert_same(TemplateBank.from_pretrained(str(tmp_path / "runs" / "bank")), bank)


def test_saving_again_replaces(tmp_path):
    make_bank().save_pretrained(tmp_path / "bank")
    bank = make_bank(source=False)
    bank.save_pretrained(tmp_path / "bank")
    assert_same(TemplateBank.from_pretrained(tmp_path / "bank"), bank)


def test_pickle():
    bank = make_bank()
    assert_same(pickle.loads(pickle.dumps(bank)), bank)


def test_a_missing_folder_says_so(tmp_path):
    with pytest.raises(FileNotFoundError, match=f"no folder {tmp_path}/nothing"):
        TemplateBank.from_pretrained(tmp_path / "nothing")


def test_what_is_no_path_names_itself():
    for use in (TemplateBank.from_pretrained, make_bank().save_pretrained):
        with pytest.raises(TypeError, match="directory must be a path, got NoneType"):
            use(None)


def test_a_source_is_a_copy_of_all_but_the_templates():
    model = nn.Sequential(KronLinear(8, 8), nn.LayerNorm(8))
    bank = TemplateBank({"a": model[0].templates})
    bank.take_source(model)
    assert bank.source.config == {}
    expected = {name: tensor.clone() for name, tensor in model.state_dict().items() if name != "0.templates"}
    nn.init.zeros_(model[0].scalers)
    torch.testing.assert_close(bank.source.state, expected, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("model", "config", "error", "message"),
    [
        (nn.Linear(8, 8), None, ValueError, "must hold the templates of the kronified model, but it has none"),
        (KronLinear(8, 8), None, ValueError, "must hold the templates of the kronified model, but a layer has others"),
        (None, {"model": object()}, TypeError, "config must be JSON: Object of type object"),
        (None, ["vit"], TypeError, "config must be a mapping, got list"),
    ],
)
def test_what_is_no_source_leaves_the_old_one(model, config, error, message):
    bank = make_bank()
    before = bank.source
    with pytest.raises(error, match=message):
        bank.take_source(KronLinear(8, 8, templates=bank["q"]) if model is None else model, config)
    assert bank.source is before


@pytest.mark.parametrize("place", ["q", "source"])
def test_nan_is_refused_when_saving_and_loading(tmp_path, place):
    bank = make_bank()
    tensor = bank["q"].data if place == "q" else bank.source.state["head.weight"]
    tensor[0, 0] = float("nan")
    with pytest.raises(ValueError, match="holds NaN"):
        bank.save_pretrained(tmp_path / "bank")
    assert tree(tmp_path) == {}


def test_only_a_source_may_hold_infinity(tmp_path):
    bank = make_bank()
    bank.source.state["mask"] = torch.tensor([0.0, -float("inf")])
    bank.save_pretrained(tmp_path / "bank")
    assert TemplateBank.from_pretrained(tmp_path / "bank").source.state["mask"][1] == -float("inf")
    bank["q"].data[0, 0] = float("inf")
    with pytest.raises(ValueError, match=r"bank\.safetensors: 'q' holds NaN or infinity"):
        bank.save_pretrained(tmp_path / "bank")


def test_failing_to_save_keeps_the_old_bank(tmp_path):
    old, new = make_bank(source=False), make_bank()
    old.save_pretrained(tmp_path / "bank")
    before = tree(tmp_path)
    with full_disk(), pytest.raises(OSError, match=f"could not write {tmp_path}/bank"):
        new.save_pretrained(tmp_path / "bank")
    new.source.config["model"] = object()
    with pytest.raises(TypeError, match="JSON"):
        new.save_pretrained(tmp_path / "bank")
    assert tree(tmp_path) == before


def test_saving_into_a_folder_of_other_things_keeps_them(tmp_path):
    (tmp_path / "thesis.tex").write_text("!")
    with pytest.raises(FileExistsError, match=r"thesis\.tex"):
        make_bank().save_pretrained(tmp_path)
    assert tree(tmp_path) == {"thesis.tex": b"!"}


@pytest.mark.parametrize(
    ("templates", "layout", "error", "message"),
    [
        ({"a.b": torch.ones(1, 2, 2)}, "block", ValueError, "a role must consist of letters"),
        ({"": torch.ones(1, 2, 2)}, "block", ValueError, "a role must consist of letters"),
        ({3: torch.ones(1, 2, 2)}, "block", TypeError, "a role must be a string, got int"),
        ({"a": torch.ones(2, 2)}, "block", ValueError, r"templates\['a'\] must have shape \(N, p, q, \*kernel\)"),
        ({"a": torch.ones(0, 2, 2)}, "block", ValueError, "none empty"),
        ({"a": torch.ones(1, 2, 2).int()}, "block", TypeError, r"templates\['a'\] must be float64"),
        ({"a": [1.0]}, "block", TypeError, r"templates\['a'\] must be a torch.Tensor, got list"),
        ([torch.ones(1, 2, 2)], "block", TypeError, "templates must be a mapping of role names to tensors, got list"),
        ({"a": torch.ones(1, 2, 2)}, "rows", ValueError, "layout must be one of"),
    ],
)
def test_bad_templates_name_themselves(templates, layout, error, message):
    with pytest.raises(error, match=message):
        TemplateBank(templates, layout)


def test_a_parameter_dict_is_a_mapping():
    parameters = torch.nn.ParameterDict({"q": torch.ones(1, 2, 2)})
    assert TemplateBank(parameters)["q"] is parameters["q"]


def test_spec_from_a_mapping():
    spec = BankSpec.of({"templates": {"q": 4}, "template_shape": {"q": [8, 16]}})
    assert spec == BankSpec(templates={"q": 4}, template_shape={"q": (8, 16)})
    assert BankSpec.of(spec) is spec
    assert (spec.count("q"), spec.shape("q", [(64, 64)])) == (4, (8, 16))
    with pytest.raises(ValueError, match="templates names the roles q, but the model also needs 'k'"):
        spec.count("k")
    with pytest.raises(ValueError, match="template_shape names the roles q, but the model also needs 'k'"):
        spec.shape("k", [(64, 64)])


def test_spec_chooses_shapes_that_divide_all_sizes_of_a_role():
    assert BankSpec().shape("fc", [(64, 32), (96, 48), (128, 64)]) == (16, 16)
    assert BankSpec(template_shape=[4, 8]).shape("fc", [(64, 32)]) == (4, 8)


@pytest.mark.parametrize(
    ("spec", "error", "message"),
    [
        ({"templates": 0}, ValueError, "templates must be positive"),
        ({"templates": {"q": "8"}}, TypeError, r"templates\['q'\] must be an int, got str"),
        ({"template_shape": (4, 4, 3)}, ValueError, "template_shape must be two positive ints"),
        ({"template_shape": {"q": (0, 4)}}, ValueError, "template_shape must be two positive ints"),
        ({"layout": "rows"}, ValueError, "layout must be one of"),
        ({"N": 4}, ValueError, "spec has fields templates, template_shape, layout, got 'N'"),
        (8, TypeError, "spec must be a BankSpec or a mapping with its fields, got int"),
    ],
)
def test_bad_specs_name_themselves(spec, error, message):
    with pytest.raises(error, match=message):
        BankSpec.of(spec)
