"""Which layers of a model the rules name, and every check that comes before a model is touched."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from weit.bank import BankSpec, TemplateBank, check_role
from weit.nn import KronConv1d, KronConv2d, KronConv3d, KronFusedLinear, KronLinear
from weit.rules import Rules, find_rules

DENSE = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
LAYERS = (nn.Linear, nn.modules.conv._ConvNd)  # those that rules may name; only DENSE ones are converted
KRON = (KronLinear, KronFusedLinear, KronConv1d, KronConv2d, KronConv3d)


Pattern = tuple[re.Pattern[str], tuple[str, ...] | None]
Part = tuple[str, Tensor]


@dataclass(frozen=True)
class Match:
    """A dense layer that rules name.

    Attributes:
        paths: its module paths; more than one if the model holds it at several places.
        layer: the layer.
        roles: its role, or one role for each of the equal parts its rows are split into.
    """

    paths: tuple[str, ...]
    layer: nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d
    roles: tuple[str, ...]

    @property
    def path(self) -> str:
        return self.paths[0]

    def parts(self) -> list[tuple[str, str, Tensor]]:
        """For each part: what its path ends in, its role, its rows of the weight."""
        if len(self.roles) == 1:
            return [("", self.roles[0], self.layer.weight)]
        weights = self.layer.weight.chunk(len(self.roles))
        return [(f".parts.{i}", role, weight) for i, (role, weight) in enumerate(zip(self.roles, weights, strict=True))]


def find_layers(model: nn.Module, rules: Rules | None) -> list[Match]:
    """Every layer of ``model`` that ``rules``, or the built-in ones, give a role.

    Raises:
        TypeError: ``model`` is no module, or ``rules`` no mapping of patterns.
        ValueError: no layer is named, or none by one of ``rules``, or one that cannot be converted.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be an nn.Module, got {type(model).__name__}")
    if isinstance(model, (*DENSE, *KRON)):
        raise ValueError(
            f"model is a single {type(model).__name__}, which cannot be replaced in place: convert it alone"
        )
    for path, module in model.named_modules():
        if isinstance(module, KRON):
            raise ValueError(f"model is kronified already: {path!r} is a {type(module).__name__}")
    patterns = _compile(find_rules(model) if rules is None else rules)

    paths: dict[nn.Module, list[str]] = {}
    named: dict[nn.Module, tuple[str, ...]] = {}
    others: dict[str, nn.Module] = {}
    for path, module in model.named_modules(remove_duplicate=False):
        paths.setdefault(module, []).append(path)
        roles = _roles(path, patterns)
        if roles is None:
            continue
        if not isinstance(module, LAYERS):
            others[path] = module
            continue
        if named.setdefault(module, roles) != roles:
            one = " and ".join(map(repr, paths[module]))
            raise ValueError(f"{one} are one layer, but rules name it {named[module]} and {roles}")
    if not named:
        found = "".join(f": only layers are converted, and {_kind(*other)}" for other in list(others.items())[:1])
        there = next((path for path, module in model.named_modules() if isinstance(module, LAYERS)), None)
        example = f"; a pattern must match a whole path, such as {there!r}" if there and not others else ""
        raise ValueError(f"rules name no nn.Linear or nn.Conv of {type(model).__name__}{found}{example}")
    if rules is not None and (idle := sorted(rules.keys() - applicable(rules, model).keys())):
        raise ValueError(f"rules[{idle[0]!r}] names no nn.Linear or nn.Conv of {type(model).__name__}")
    stand_ins = _stand_ins(model, patterns)
    for path, module in others.items():
        if module in stand_ins:
            raise _unconvertible(path, module)
    matches = [
        Match(tuple(paths[layer]), _check_layer(paths[layer][0], layer, roles), roles) for layer, roles in named.items()
    ]
    _check_untied(model, matches)
    return matches


def applicable(rules: Rules, model: nn.Module) -> Rules:
    """Those of ``rules`` whose pattern matches a layer of ``model`` or a stand-in for one, if only behind an earlier one."""
    patterns = _compile(rules)
    stand_ins = _stand_ins(model, patterns)
    modules = model.named_modules(remove_duplicate=False)
    layers = [path for path, module in modules if isinstance(module, LAYERS) or module in stand_ins]
    matching = {pattern.pattern for pattern, _ in patterns if any(map(pattern.fullmatch, layers))}
    return {pattern: role for pattern, role in rules.items() if pattern in matching}


def by_role(matches: list[Match]) -> dict[str, list[Part]]:
    """Role → ``(path, weight)`` of each part that has it; kernels, dtypes and devices agree within a role.

    Raises:
        ValueError: they do not.
    """
    grouped: dict[str, list[Part]] = {}
    for match in matches:
        for suffix, role, weight in match.parts():
            same = grouped.setdefault(role, [])
            same.append((match.path + suffix, weight))
            _check_alike(f"layers of role {role!r} must agree", *same[0], *same[-1], axes=2)
    return grouped


def demands(matches: list[Match], spec: BankSpec) -> list[tuple[str, list[Part], int, tuple[int, int]]]:
    """Each role with its weights, and how many templates of which shape ``spec`` gives it.

    Raises:
        ValueError: as ``by_role``; ``spec`` lacks a role or names one that there is not.
    """
    grouped = by_role(matches)
    sizes = {role: [(w.shape[0], w.shape[1]) for _, w in parts] for role, parts in grouped.items()}
    found = [(role, parts, spec.count(role), spec.shape(role, sizes[role])) for role, parts in grouped.items()]
    spec.check_roles(grouped)
    return found


def check_bank(bank: TemplateBank, matches: list[Match]) -> None:
    """Raise ``ValueError`` unless ``bank`` has fitting templates for every layer."""
    for role, weights in by_role(matches).items():
        path, weight = weights[0]
        if role not in bank:
            raise ValueError(f"bank lacks role {role!r} of {path!r}; it has {', '.join(bank.roles)}")
        _check_alike("bank must fit the model", f"bank[{role!r}]", bank[role], path, weight, axes=3)


def _check_alike(rule: str, name: str, tensor: Tensor, other_name: str, other: Tensor, *, axes: int) -> None:
    """Check that two tensors share kernel, dtype and device; ``axes`` of ``tensor`` precede its kernel."""
    for what, a, b in (
        ("kernel", tuple(tensor.shape[axes:]), tuple(other.shape[2:])),
        ("dtype", tensor.dtype, other.dtype),
        ("device", tensor.device, other.device),
    ):
        if a != b:
            raise ValueError(f"{rule}: {name} has {what} {a}, {other_name} has {what} {b}")


def _compile(rules: Rules) -> list[Pattern]:
    if not isinstance(rules, Mapping):
        raise TypeError(f"rules must map patterns to roles, got {type(rules).__name__}")
    compiled: list[Pattern] = []
    for pattern, role in rules.items():
        if not isinstance(pattern, str):
            raise TypeError(f"rules must map patterns, which are strings, to roles, got {pattern!r}")
        roles = (role,) if isinstance(role, str) else role
        parts = roles if isinstance(roles, Sequence) else ()
        if roles is not None and not (parts and all(isinstance(part, str) for part in parts)):
            raise TypeError(f"rules[{pattern!r}] must be a role, a tuple of roles or None, got {role!r}")
        try:
            compiled.append((re.compile(pattern), None if roles is None else tuple(roles)))
        except re.error as error:
            raise ValueError(f"rules: {pattern!r} is no regular expression: {error}") from error
    return compiled


def _roles(path: str, patterns: list[Pattern]) -> tuple[str, ...] | None:
    for pattern, roles in patterns:
        if found := pattern.fullmatch(path):
            if roles is None:
                return None
            try:
                expanded = tuple(found.expand(role) for role in roles)
            except (re.error, IndexError) as error:
                raise ValueError(f"rules[{pattern.pattern!r}] is {roles}: {error}") from error
            for role in expanded:
                check_role(role)
            return expanded
    return None


def _stand_ins(model: nn.Module, patterns: list[Pattern]) -> set[nn.Module]:
    """Modules that some rule gives a role, and that have weights which would stay dense for being in no plain layer."""
    modules = list(model.named_modules(remove_duplicate=False))
    listed = {module for path, module in modules if any(pattern.fullmatch(path) for pattern, _ in patterns)}
    giving = [pattern for pattern, roles in patterns if roles is not None]
    others = {module for path, module in modules if any(pattern.fullmatch(path) for pattern in giving)}
    return {module for module in others if not isinstance(module, LAYERS) and _stands_for_a_layer(module, listed)}


def _stands_for_a_layer(module: nn.Module, listed: set[nn.Module]) -> bool:
    """A block whose layers rules list one by one does not, nor does a norm or an activation."""
    inside = [each for each in module.modules() if isinstance(each, LAYERS)]
    if inside:  # such as the layer in a LoRA adapter
        return any(each not in listed for each in inside)
    sizes = ("in_features", "out_features"), ("in_channels", "out_channels")  # such as a quantised layer
    return any(all(isinstance(getattr(module, name, None), int) for name in pair) for pair in sizes)


def _kind(path: str, module: nn.Module) -> str:
    kind = type(module)
    alike = kind not in DENSE and kind.__name__ in {dense.__name__ for dense in DENSE}  # as of peft and of torch.ao
    return f"{path!r} is a {kind.__module__ + '.' if alike else ''}{kind.__name__}"


def _unconvertible(path: str, module: nn.Module) -> ValueError:
    names = ", ".join(dense.__name__ for dense in DENSE)
    return ValueError(f"{_kind(path, module)}; only {names} are converted. Map it to None")


def _check_layer(path: str, layer: nn.Module, roles: tuple[str, ...]) -> nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d:
    kind = type(layer).__name__
    if isinstance(layer, nn.modules.lazy.LazyModuleMixin):
        raise ValueError(f"{path!r} is a {kind} without sizes yet: run the model once first")
    if type(layer) not in DENSE:
        # A subclass may compute something else; its forward would be lost.
        raise _unconvertible(path, layer)
    assert isinstance(layer, DENSE)
    if not isinstance(layer._parameters.get("weight"), nn.Parameter):
        raise ValueError(f"the weight of {path!r} is computed by a hook or parametrization; remove that first")
    if len(roles) > 1 and not isinstance(layer, nn.Linear):
        raise ValueError(f"{path!r} is a {kind}; only a Linear is split into roles, got {roles}")
    if layer.weight.shape[0] % len(roles):
        raise ValueError(f"{path!r} has {layer.weight.shape[0]} rows, which {len(roles)} roles {roles} do not divide")
    return layer


def _check_untied(model: nn.Module, matches: list[Match]) -> None:
    holders: dict[int, set[nn.Module]] = {}
    for module in model.modules():
        for parameter in module._parameters.values():
            holders.setdefault(id(parameter), set()).add(module)
    for match in matches:
        for name, parameter in match.layer.named_parameters(recurse=False):
            if len(holders[id(parameter)]) > 1:
                raise ValueError(f"the {name} of {match.path!r} is tied to another module's. Map it to None")
