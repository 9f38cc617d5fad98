"""From dense models to models on a template bank, and back."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from torch import Tensor, nn

from weit.bank import BankSpec, Source, TemplateBank
from weit.heads import head_dims
from weit.matching import KRON, Match, check_bank, demands, find_layers
from weit.nn import KronConv1d, KronConv2d, KronConv3d, KronFusedLinear, KronLinear
from weit.nn.conv import conv_settings
from weit.nn.factors import KronFactors, take_bias
from weit.nn.init import reset_templates
from weit.rules import Rules
from weit.scalers import check_heads, lay_out, map_depth
from weit_kernels import nearest_kron
from weit_kernels.shapes import check_finite

_CONVS: dict[type, Any] = {nn.Conv1d: KronConv1d, nn.Conv2d: KronConv2d, nn.Conv3d: KronConv3d}


class Extracted(NamedTuple):
    """What ``extract_bank`` returns: the bank, and module path → scalers ``(N, m, n)``."""

    bank: TemplateBank
    scalers: dict[str, Tensor]


def kronify(
    model: nn.Module, bank_or_spec: TemplateBank | BankSpec | Mapping[str, Any], *, rules: Rules | None = None
) -> TemplateBank:
    """Replace the layers that ``rules`` name by Kron layers that share one bank, in place.

    Scalers are those of the bank's source, cut or repeated by ``weit.scalers.lay_out``. Where there is none, or (with a
    warning) one of another model family, they are fresh, so that each dense weight has the mean and variance of a fresh
    ``nn.Linear``'s. Biases are copied. Fused layers (a tuple of roles) become a ``KronFusedLinear``. Scalers of a frozen
    weight are frozen, and so are new templates if all weights of their role are. Hooks of replaced layers do not stay.
    Everything is checked before anything is replaced.

    The layers of a role hold one parameter, and ``save_pretrained`` of transformers refuses parameters that are shared:
    ``materialize`` before it, or keep the bank (docs/training.md).

    Args:
        model: any model whose layers are plain ``nn.Linear`` and ``nn.Conv1d/2d/3d``.
        bank_or_spec: the bank to share, or what a new one is made from: a ``BankSpec`` or a mapping with its
            fields.
        rules: pattern on module path (``re.fullmatch``, the first that matches counts) → role, tuple of roles
            (rows split evenly: ``("q", "k", "v")``), or ``None`` to leave the layer dense. A role may refer to
            groups of the pattern: ``r"stage\\1_3x3"``. Each must match some layer. By default the built-in rules of the
            model's family.

    Returns:
        The bank, given or new.

    Raises:
        TypeError, ValueError: no layer is named, or none by one of ``rules``, one cannot be converted, or bank or spec do
            not fit: attention heads are of another size than in the bank's source, for one.
    """
    matches = find_layers(model, rules)
    if isinstance(bank_or_spec, TemplateBank):
        bank = bank_or_spec
        check_bank(bank, matches)
        if bank.source is not None and _same_family(matches, bank.source):
            check_heads(model, bank.source)
    else:
        bank = _fresh_bank(matches, BankSpec.of(bank_or_spec))
    replacements: dict[nn.Module, nn.Module] = {match.layer: _kron_layer(match, bank) for match in matches}
    _replace(model, replacements)
    if bank.source is not None:
        try:
            lay_out(model, bank.source, only_scalers=True)
        except ValueError as error:
            warnings.warn(f"scalers are fresh: {error}", stacklevel=2)
    return bank


def _same_family(matches: list[Match], source: Source) -> bool:
    """Whether each layer has a counterpart in ``source``, whose scalers it will be given."""
    names = [f"{match.path}{suffix}.scalers" for match in matches for suffix, _, _ in match.parts()]
    return map_depth(source.state, names).keys() >= set(names)


def bank_of(model: nn.Module) -> TemplateBank:
    """The bank that ``kronify`` put ``model`` on, made anew from its layers: the very parameters, and no source.

    Roles that no layer of ``model`` has are not in it.

    Raises:
        ValueError: no layer is kronified, or one by hand, so that its role is not known; layers of a role hold different
            templates; layouts differ.
    """
    layers = [(path, layer) for path, layer in model.named_modules() if isinstance(layer, KronFactors)]
    templates: dict[str, Tensor] = {}
    for path, layer in layers:
        if layer.role is None:
            raise ValueError(f"{path!r} has no role, as kronify did not make it")
        if templates.setdefault(layer.role, layer.templates) is not layer.templates:
            raise ValueError(f"{path!r} has other templates than the layers of role {layer.role!r} before it")
    layouts = sorted({layer.layout for _, layer in layers})
    if len(layouts) != 1:
        found = f"layers of the layouts {' and '.join(layouts)}" if layouts else "no Kron layers"
        raise ValueError(f"a bank is of one layout, but the model has {found}")
    return TemplateBank(templates, *layouts)


def materialize(model: nn.Module) -> nn.Module:
    """Replace every Kron layer by its ``nn.Linear`` or ``nn.Conv``, in place; the result needs torch alone.

    Outputs, dtypes, devices, ``requires_grad`` and training flags stay. Hooks of replaced layers do not.

    Returns:
        ``model``, or its dense layer if ``model`` itself is a Kron layer.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be an nn.Module, got {type(model).__name__}")
    if isinstance(model, KRON):
        return _dense_layer(model)
    _replace(model, {layer: _dense_layer(layer) for layer in set(_outermost(model))})
    return model


def extract_bank(model: nn.Module, spec: BankSpec | Mapping[str, Any], *, rules: Rules | None = None) -> Extracted:
    """The best bank for a trained dense model in closed form; ``model`` stays as it is.

    All layers of a role are fitted together by ``weit_kernels.nearest_kron``.

    Args:
        model, rules: as for ``kronify``.
        spec: how many templates of which shape.

    Returns:
        The bank, with ``relative_error`` for each role and ``source`` filled, and the scalers by module path
        (parts of a fused layer: ``<path>.parts.<i>``). ``kronify(model, bank)`` puts both into the model.

    Raises:
        TypeError, ValueError: as ``kronify``; NaN in a weight.
    """
    matches, spec = find_layers(model, rules), BankSpec.of(spec)
    templates: dict[str, Tensor] = {}
    scalers: dict[str, Tensor] = {}
    errors: dict[str, float] = {}
    for role, weights, N, shape in demands(matches, spec):
        for path, weight in weights:
            check_finite(f"the weight of {path!r}", weight)
        try:
            fit = nearest_kron([weight for _, weight in weights], N, shape, layout=spec.layout)
        except ValueError as error:
            raise ValueError(f"role {role!r}: {error}") from error
        templates[role], fitted, errors[role] = fit
        scalers |= {path: s for (path, _), s in zip(weights, fitted, strict=True)}
    bank = TemplateBank(templates, spec.layout)
    bank.relative_error = errors
    config = {"extracted_from": type(model).__name__}
    bank.source = Source(_state(model, matches, scalers), config, sorted(head_dims(model)))
    return Extracted(bank, scalers)


def _fresh_bank(matches: list[Match], spec: BankSpec) -> TemplateBank:
    templates = {}
    for role, weights, N, (p, q) in demands(matches, spec):
        first = weights[0][1]
        empty = first.new_empty(N, p, q, *first.shape[2:])
        templates[role] = nn.Parameter(empty, any(weight.requires_grad for _, weight in weights))
        reset_templates(templates[role], first[0].numel())
    return TemplateBank(templates, spec.layout)


def _kron_layer(match: Match, bank: TemplateBank) -> nn.Module:
    layer: Any = match.layer
    if type(layer) in _CONVS:
        kron = _CONVS[type(layer)](*conv_settings(layer), templates=bank[match.roles[0]], layout=bank.layout)
        return _take_rest(kron, match.roles[0], layer, layer.bias)
    rows, has_bias = layer.out_features // len(match.roles), layer.bias is not None
    biases = layer.bias.split(rows) if has_bias else [None] * len(match.roles)
    parts = [
        _take_rest(
            KronLinear(layer.in_features, rows, has_bias, templates=bank[role], layout=bank.layout),
            role,
            layer,
            bias,
        )
        for role, bias in zip(match.roles, biases, strict=True)
    ]
    return parts[0] if len(parts) == 1 else KronFusedLinear(parts).train(layer.training)


def _take_rest(kron: Any, role: str, layer: Any, bias: Tensor | None) -> Any:
    kron.role = role
    take_bias(kron, bias)
    kron.scalers.requires_grad_(layer.weight.requires_grad)
    return kron.train(layer.training)


def _dense_layer(layer: Any) -> nn.Module:
    return layer.to_linear() if isinstance(layer, (KronLinear, KronFusedLinear)) else layer.to_conv()


def _outermost(model: nn.Module) -> Iterator[nn.Module]:
    """Kron layers, but not the parts of a fused one, which becomes one dense layer."""
    for child in model.children():
        if isinstance(child, KRON):
            yield child
        else:
            yield from _outermost(child)


def _replace(model: nn.Module, replacements: Mapping[nn.Module, nn.Module]) -> None:
    for parent in list(model.modules()):
        for name, child in parent._modules.items():
            if child is not None and child in replacements:
                parent._modules[name] = replacements[child]


def _state(model: nn.Module, matches: list[Match], scalers: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """State dict that ``model`` would have when kronified with these scalers, without templates."""
    state = {key: each.clone() for key, each in model.state_dict().items() if isinstance(each, Tensor)}
    for match in matches:
        for path in match.paths:
            del state[f"{path}.weight"]
            bias = state.pop(f"{path}.bias", None)
            biases = [None] * len(match.roles) if bias is None else bias.chunk(len(match.roles))
            for (suffix, _, _), part in zip(match.parts(), biases, strict=True):
                state[f"{path}{suffix}.scalers"] = scalers[match.path + suffix]
                if part is not None:
                    state[f"{path}{suffix}.bias"] = part.clone()
    return state
