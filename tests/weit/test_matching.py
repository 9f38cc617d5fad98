import pytest
import torch
from torch import nn

from weit import KronLinear, TemplateBank, kronify
from weit.matching import find_layers


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3)
        self.blocks = nn.ModuleList(
            nn.ModuleDict({"attn": nn.Linear(8, 24), "norm": nn.LayerNorm(8), "conv": nn.Conv2d(8, 8, 3)})
            for _ in range(2)
        )
        self.head = nn.Linear(8, 10)


def found(model, rules):
    return {match.path: match.roles for match in find_layers(model, rules)}


def test_the_first_pattern_that_matches_the_whole_path_counts():
    rules = {"tem|head": None, r"blocks\.1\.attn": None, r".*\.attn": ("q", "k", "v"), "stem|attn": "stem"}
    assert found(Model(), rules) == {"stem": ("stem",), "blocks.0.attn": ("q", "k", "v")}


def test_broad_patterns_pass_over_what_is_no_layer():
    assert found(Model(), {r"blocks.*": r"all"}).keys() == {
        f"blocks.{i}.{name}" for i in range(2) for name in ("attn", "conv")
    }


class Adapted(nn.Module):
    """As adapters wrap a layer."""

    def __init__(self):
        super().__init__()
        self.base_layer, self.down, self.up = nn.Linear(8, 24), nn.Linear(8, 2), nn.Linear(2, 24)


class Quantised(nn.Module):
    in_features, out_features = 8, 24


@pytest.mark.parametrize("kind", [Adapted, Quantised])
def test_what_stands_for_a_layer_is_refused_beside_layers(kind):
    model = Model()
    model.blocks[1].attn = kind()
    with pytest.raises(ValueError, match=rf"'blocks.1.attn' is a {kind.__name__}; only Linear, .* Map it to None"):
        find_layers(model, ATTN)
    assert found(model, {r"blocks\.1\.attn": None, **ATTN}).keys() == {"blocks.0.attn"}


def test_layers_inside_that_are_named_or_left_dense_are_passed_over():
    model = Model()
    model.blocks[1].attn = Adapted()
    rules = {r".*(down|up)": None, r".*attn|.*base_layer": "attn"}
    assert found(model, rules).keys() == {"blocks.0.attn", "blocks.1.attn.base_layer"}


def test_another_librarys_linear_says_whose_it_is():
    model = Model()
    model.blocks[1].attn = type("Linear", (Quantised,), {"__module__": "torch.ao"})()
    with pytest.raises(ValueError, match=r"'blocks.1.attn' is a torch\.ao\.Linear; only Linear"):
        find_layers(model, ATTN)


def test_roles_refer_to_groups_of_the_pattern():
    assert found(Model(), {r"blocks\.(\d)\.(?P<kind>\w+)": r"\g<kind>_\1"}) == {
        f"blocks.{i}.{name}": (f"{name}_{i}",) for i in range(2) for name in ("attn", "conv")
    }


def test_parts_are_equal_rows():
    (match,) = find_layers(Model(), {r"blocks\.0\.attn": ["q", "k", "v"]})
    suffixes, roles, weights = zip(*match.parts(), strict=True)
    assert (suffixes, roles) == ((".parts.0", ".parts.1", ".parts.2"), ("q", "k", "v"))
    assert torch.equal(torch.cat(weights), match.layer.weight)


def test_a_layer_at_two_places_is_found_once():
    model = Model()
    model.again = model.head
    (match,) = find_layers(model, {"again": "h"})
    assert match.paths == ("head", "again")
    (match,) = find_layers(model, {"head|again": "h"})
    with pytest.raises(ValueError, match="'head' and 'again' are one layer"):
        find_layers(model, {"head": "h", "again": "a"})


def tie(name):
    def change(model):
        setattr(model.blocks[1].attn, name, getattr(model.blocks[0].attn, name))

    return change


def put(path, make):
    def change(model):
        parent, _, name = path.rpartition(".")
        setattr(model.get_submodule(parent), name, make())

    return change


class Scaled(nn.Linear):
    def forward(self, x):
        return 2 * super().forward(x)


ATTN = {r"blocks\.\d\.attn": "attn"}
SPEC = {"templates": 2}
BANK = TemplateBank({"attn": torch.randn(2, 4, 4)})

# What is wrong with the model, the rules, the bank; what is said about it.
WRONG = {
    "nothing matches": (
        None,
        {"block": "a"},
        SPEC,
        "rules name no nn.Linear or nn.Conv of Model; a pattern must match a whole path, such as 'stem'$",
    ),
    "wrong kind of module": (
        None,
        {r".*norm": "a"},
        SPEC,
        "only layers are converted, and 'blocks.0.norm' is a LayerNorm",
    ),
    "container": (None, {r"blocks\.\d": "a"}, SPEC, "'blocks.0' is a ModuleDict"),
    "a pattern without a layer": (
        None,
        {**ATTN, "sten": "a"},
        SPEC,
        r"rules\['sten'\] names no nn.Linear or nn.Conv of",
    ),
    "a container beside a layer": (
        None,
        {**ATTN, r"blocks\.1": None},
        SPEC,
        "rules.* names no nn.Linear or nn.Conv of",
    ),
    "only None": (None, {".*": None}, SPEC, "rules name no nn.Linear"),
    "unknown family": (None, None, SPEC, "no built-in rules know .* Model .known: weit.* timm.* Pass rules="),
    "bad pattern": (None, {"(": "a"}, SPEC, "'.' is no regular expression"),
    "bad group": (None, {"stem": r"\1"}, SPEC, "invalid group reference"),
    "bad role": (None, {"stem": "a.b"}, SPEC, "a role must consist of letters"),
    "kernels differ": (
        None,
        {"stem": "a", "head": "a"},
        SPEC,
        r"layers of role 'a' must agree: stem has kernel \(3, 3\), head has kernel \(\)",
    ),
    "dtypes differ": (
        lambda m: m.blocks[1].double(),
        ATTN,
        SPEC,
        "blocks.0.attn has dtype torch.float32, blocks.1.attn has dtype torch.float64",
    ),
    "devices differ": (
        lambda m: m.blocks[1].to("meta"),
        ATTN,
        SPEC,
        "blocks.0.attn has device cpu, blocks.1.attn has device meta",
    ),
    "subclass": (put("blocks.1.attn", lambda: Scaled(8, 24)), ATTN, SPEC, "'blocks.1.attn' is a Scaled; only Linear"),
    "transposed": (
        put("stem", lambda: nn.ConvTranspose2d(3, 8, 3)),
        {"stem": "a"},
        SPEC,
        "'stem' is a ConvTranspose2d",
    ),
    "lazy": (put("head", lambda: nn.LazyLinear(3)), {"head": "a"}, SPEC, "'head' is a LazyLinear without sizes yet"),
    "parametrized": (
        lambda m: nn.utils.parametrizations.weight_norm(m.head),
        {"head": "a"},
        SPEC,
        "'head' is a ParametrizedLinear",
    ),
    "computed weight": (
        lambda m: nn.utils.spectral_norm(m.head),
        {"head": "a"},
        SPEC,
        "the weight of 'head' is computed by a hook",
    ),
    "tied": (tie("weight"), ATTN, SPEC, "the weight of 'blocks.0.attn' is tied"),
    "tied bias": (tie("bias"), ATTN, SPEC, "the bias of 'blocks.0.attn' is tied"),
    "kronified": (put("head", lambda: KronLinear(8, 10)), ATTN, SPEC, "kronified already: 'head' is a KronLinear"),
    "indivisible": (None, {r".*attn": tuple("qkvop")}, SPEC, "24 rows, which 5 roles"),
    "fused convolution": (None, {"stem": ("a", "b")}, SPEC, "only a Linear is split into roles"),
    "role not in the spec": (None, ATTN, {"templates": {"q": 4}}, "the model also needs 'attn'"),
    "count for a role that is none": (
        None,
        ATTN,
        {"templates": {"attn": 4, "atn": 8}},
        "templates names 'atn', but the roles of the model are attn",
    ),
    "shape for a role that is none": (
        None,
        ATTN,
        {"template_shape": {"attn": (4, 4), "fc": (4, 4)}},
        "template_shape names 'fc', but the roles of the model are attn",
    ),
    "role not in the bank": (
        None,
        {**ATTN, "head": "head"},
        BANK,
        "bank lacks role 'head' of 'head'; it has attn",
    ),
    "bank of other dtype": (
        lambda m: m.double(),
        ATTN,
        BANK,
        r"bank must fit the model: bank\['attn'\] has dtype torch.float32, blocks.0.attn has dtype torch.float64",
    ),
    "bank on other device": (lambda m: m.to("meta"), ATTN, BANK, r"bank\['attn'\] has device cpu"),
    "bank with other kernel": (None, {**ATTN, "stem": "attn"}, BANK, r"kernel \(3, 3\)"),
    "bank of linear templates for a convolution": (
        None,
        {"stem": "attn"},
        BANK,
        r"bank\['attn'\] has kernel \(\), stem has kernel \(3, 3\)",
    ),
}


@pytest.mark.parametrize(("change", "rules", "bank", "message"), WRONG.values(), ids=WRONG)
@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")
def test_what_cannot_be_converted_is_said_before_anything_is_replaced(change, rules, bank, message):
    model = Model()
    if change:
        change(model)
    before = list(model.named_modules())
    with pytest.raises(ValueError, match=message):
        kronify(model, bank, rules=rules)
    assert [(path, id(module)) for path, module in model.named_modules()] == [(p, id(m)) for p, m in before]


@pytest.mark.parametrize(
    ("model", "rules", "error", "message"),
    [
        ("model", ATTN, TypeError, "model must be an nn.Module, got str"),
        (Model(), [("a", "b")], TypeError, "rules must map patterns to roles, got list"),
        (Model(), {"stem": 3}, TypeError, r"rules\['stem'\] must be a role, a tuple of roles or None, got 3"),
        (Model(), {"stem": ()}, TypeError, r"rules\['stem'\] must be a role"),
        (nn.Linear(3, 3), {".*": "a"}, ValueError, "model is a single Linear"),
    ],
)
def test_wrong_types(model, rules, error, message):
    with pytest.raises(error, match=message):
        find_layers(model, rules)
