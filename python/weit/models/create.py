"""Models by name: the package's own small ones, and timm's and Hugging Face's where those are installed."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from difflib import get_close_matches
from typing import Any

from torch import Tensor, nn

from weit.models import presets
from weit.models.dit import DiT
from weit.models.policy import MLPPolicy, TransformerPolicy
from weit.models.vit import VisionTransformer

_OWN: dict[str, Callable[..., nn.Module]] = {
    "vit": VisionTransformer,
    "dit": DiT,
    "mlp": MLPPolicy,
    "transformer": TransformerPolicy,
}
_PRESETS: dict[str, Callable[..., dict[str, Any]]] = {"resnet": presets.resnet, "convnext": presets.convnext}
# Arguments come from files of others too, and the libraries would read what these name, pickles among them.
_FROM_ELSEWHERE = ("pretrained", "checkpoint_path", "cache_dir")
_NONE_OF_THEM = ("pretrained_window_size", "pretrained_window_sizes")  # numbers of a Swin


def create_model(name: str, **arguments: Any) -> nn.Module:
    """A freshly initialised model.

    Args:
        name: one of the package's own, ``"vit"``, ``"dit"``, ``"mlp"`` and ``"transformer"``; ``"resnet"`` or
            ``"convnext"``, small ones of Hugging Face sized by width and depth (``weit.models.presets``);
            ``"timm:<model>"`` (any name timm knows) or ``"hf:<model type>"`` (a Hugging Face model type such as ``vit`` or
            ``resnet``, built from its configuration without a download).
        **arguments: the model's own; image classifiers, images ``(B, in_chans, H, W)`` -> logits ``(B, num_classes)``,
            take ``img_size``, ``in_chans`` and ``num_classes``, whichever library they are from.

    Raises:
        ValueError: unknown name, arguments that the model refuses, or one that names weights to read or to download.
        RuntimeError: the library that builds the model is not installed.
    """
    library, _, model = name.rpartition(":") if isinstance(name, str) else ("", "", "")
    if (library not in ("timm", "hf") and name not in (*_OWN, *_PRESETS)) or (library and not model):
        known = ", ".join(f'"{own}"' for own in (*_OWN, *_PRESETS))
        raise ValueError(f'model must be {known}, "timm:<model>" or "hf:<model type>", got {name!r}')
    names = [key for key in _names(arguments) if key not in _NONE_OF_THEM]
    if elsewhere := [key for key in names if any(word in key for word in _FROM_ELSEWHERE)]:
        raise ValueError(f"model {name} starts from its own random weights, so it takes no {elsewhere[0]}")
    try:
        if name in _PRESETS:
            return _hugging_face(name, **_PRESETS[name](**arguments))
        if library == "timm":
            return _timm(model, **arguments)
        if library == "hf":
            return _hugging_face(model, **arguments)
        return _OWN[name](**arguments)
    except (TypeError, AttributeError, AssertionError) as error:
        raise ValueError(f"model {name} refuses its arguments: {error or 'it asserts something else'}") from error


def _names(arguments: Mapping[str, Any]) -> Iterator[str]:
    """All names in ``arguments``, those of nested ones too."""
    for name, value in arguments.items():
        yield str(name)
        if isinstance(value, Mapping):
            yield from _names(value)


def default_arguments(name: str) -> dict[str, Any]:
    """What ``create_model`` takes for arguments that are not given, if ``name`` is one of the package's own models."""
    own: Callable[..., Any] | None = _OWN.get(name) or _PRESETS.get(name)
    parameters = inspect.signature(own).parameters.values() if own else ()
    return {each.name: each.default for each in parameters if each.default is not each.empty}


def _timm(model: str, **arguments: Any) -> nn.Module:
    try:
        import timm
    except ImportError as error:
        raise RuntimeError(f"timm:{model} needs timm: pip install .[timm] ({error})") from error
    except RuntimeError as error:  # what torchvision raises beside a torch of another build
        raise RuntimeError(
            f"timm:{model}: timm does not import ({error}); torchvision must be built for this torch"
        ) from error
    if not timm.is_model(model):
        raise ValueError(f"model must be one that timm.list_models() names, got {model!r}")
    if not timm.models.get_pretrained_cfg(model).fixed_input_size:
        arguments.pop("img_size", None)  # a ConvNet takes any size and refuses to be told one
    return timm.create_model(model, pretrained=False, **arguments)


def _hugging_face(
    model: str, img_size: int | None = None, in_chans: int = 3, num_classes: int = 1000, **arguments: Any
) -> nn.Module:
    try:
        from transformers import CONFIG_MAPPING, AutoConfig, AutoModelForImageClassification
    except ImportError as error:
        raise RuntimeError(f"hf:{model} needs transformers: pip install .[transformers] ({error})") from error
    if model not in CONFIG_MAPPING:
        near = get_close_matches(model, CONFIG_MAPPING, 3)
        hint = f"; near it: {', '.join(near)}" if near else ""
        raise ValueError(f'model must be "hf:" and a model type of transformers, such as vit, got {model!r}{hint}')
    usual = AutoConfig.for_model(model)
    if unknown := [name for name in arguments if not hasattr(usual, name)]:  # transformers would take any name
        raise ValueError(f"model hf:{model} refuses its arguments: its configuration has no {unknown[0]!r}")
    if img_size is not None:
        arguments["image_size"] = img_size
    config = AutoConfig.for_model(model, num_channels=in_chans, num_labels=num_classes, **arguments)
    try:
        network = AutoModelForImageClassification.from_config(config)
    except ImportError as error:  # raised late: transformers imports a model when it is first asked for
        reason = error.__cause__ or error
        raise RuntimeError(
            f"hf:{model}: transformers cannot import it ({reason}); torchvision, if it is installed, must be built for "
            "this torch"
        ) from error
    network.register_forward_hook(_logits)  # a wrapper would change the module paths that rules match
    return network


def _logits(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> Tensor:
    return output.logits
