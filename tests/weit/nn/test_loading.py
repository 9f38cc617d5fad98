import copy

import pytest
import torch

from weit import KronConv2d, KronFusedLinear, KronLinear, TemplateBank


def fused() -> KronFusedLinear:
    first = KronLinear(8, 6, templates=2)
    return KronFusedLinear([first, KronLinear(8, 6, templates=first.templates)])


MODULES = {
    "linear": lambda: KronLinear(8, 6),
    "conv": lambda: KronConv2d(8, 6, 3),
    "fused": fused,
    "bank": lambda: TemplateBank({role: torch.randn(2, 4, 4) for role in ("a", "b")}),
}

DAMAGES = {
    "missing": lambda state, last: state.pop(last),
    "unexpected": lambda state, last: state.update(extra=torch.ones(3)),
    "size mismatch": lambda state, last: state.update({last: torch.ones(9, 9)}),
    r"expected torch\.Tensor": lambda state, last: state.update({last: [1.0]}),
}


def numbers(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


@pytest.mark.parametrize("assign", [False, True])
@pytest.mark.parametrize("make", MODULES.values(), ids=MODULES)
@pytest.mark.parametrize(("message", "damage"), DAMAGES.items(), ids=DAMAGES)
def test_a_state_that_is_refused_changes_nothing(make, message, damage, assign) -> None:
    module = make()
    before, parameters = numbers(module), dict(module.named_parameters(remove_duplicate=False))
    given = {name: tensor + 1 for name, tensor in before.items()}
    damage(given, list(given)[-1])
    kept = copy.deepcopy(given)
    with pytest.raises(RuntimeError, match=f"(?is){message}"):
        module.load_state_dict(given, assign=assign)
    torch.testing.assert_close(numbers(module), before, rtol=0, atol=0)
    assert all(module.get_parameter(name) is parameter for name, parameter in parameters.items())
    torch.testing.assert_close(given, kept, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("assign", "wrong"), [(True, lambda tensor: tensor.long()), (False, lambda tensor: tensor.to("meta"))]
)
@pytest.mark.parametrize("make", MODULES.values(), ids=MODULES)
def test_nor_does_one_that_is_refused_while_it_is_copied(make, assign, wrong) -> None:
    module = make()
    before, parameters = numbers(module), dict(module.named_parameters(remove_duplicate=False))
    given = {name: tensor + 1 for name, tensor in before.items()}
    last = list(given)[-1]
    with pytest.raises(RuntimeError):
        module.load_state_dict({**given, last: wrong(given[last])}, assign=assign)
    torch.testing.assert_close(numbers(module), before, rtol=0, atol=0)
    assert all(module.get_parameter(name) is parameter for name, parameter in parameters.items())


@pytest.mark.parametrize("assign", [False, True])
@pytest.mark.parametrize("make", MODULES.values(), ids=MODULES)
def test_a_state_that_fits_is_loaded(make, assign) -> None:
    module, wanted = make(), numbers(make())
    assert str(module.load_state_dict(wanted, assign=assign)) == "<All keys matched successfully>"
    torch.testing.assert_close(numbers(module), wanted, rtol=0, atol=0)


def test_without_strict_what_fits_by_name_is_loaded_but_no_other_shape() -> None:
    layer = KronLinear(8, 6)
    before = numbers(layer)
    found = layer.load_state_dict({"bias": before["bias"] + 1, "other": torch.ones(2)}, strict=False)
    assert (found.missing_keys, found.unexpected_keys) == (["templates", "scalers"], ["other"])
    torch.testing.assert_close(numbers(layer), {**before, "bias": before["bias"] + 1}, rtol=0, atol=0)
    with pytest.raises(RuntimeError, match="size mismatch for scalers"):
        layer.load_state_dict({"bias": before["bias"], "scalers": torch.ones(2)}, strict=False)
    torch.testing.assert_close(layer.bias.detach(), before["bias"] + 1, rtol=0, atol=0)


def test_what_is_no_state_is_refused_as_torch_does() -> None:
    with pytest.raises(TypeError, match="Expected state_dict to be dict-like"):
        KronLinear(8, 6).load_state_dict([1])
