"""Template banks: the templates of every role of a model family, what came with them, and their files."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import safetensors.torch
from torch import Tensor, nn

from weit.bank_files import CONFIG, FILES, FORMAT, SOURCE, TEMPLATES, VERSION, check_finite, read_files
from weit.files import atomic_dir, digest
from weit.heads import head_dims
from weit.nn.factors import KronFactors, check_size, check_template_shape
from weit.nn.init import default_template_size
from weit.nn.sharing import KeepsShared
from weit_kernels.shapes import LAYOUTS, check_choice, check_floating


@dataclass(frozen=True)
class BankSpec:
    """How many templates of which shape a bank has.

    Attributes:
        templates: number of templates of every role, or of each by name; those of the model and no others.
        template_shape: ``(p, q)`` of every role, or of each by name; ``None``: chosen for each role from the
            sizes of its layers (``weit.nn.init.default_template_size``).
        layout: ``"block"``, or ``"interleaved"``, which serves models of one width (docs/operator.md).

    Raises:
        TypeError, ValueError: a field of the wrong type or out of range.
    """

    templates: int | Mapping[str, int] = 8
    template_shape: tuple[int, int] | Mapping[str, tuple[int, int]] | None = None
    layout: str = "block"

    def __post_init__(self) -> None:
        counts = self.templates if isinstance(self.templates, Mapping) else {"": self.templates}
        for role, count in counts.items():
            check_size(f"templates[{role!r}]" if role else "templates", count)
        shapes: Any = self.template_shape
        if isinstance(shapes, Mapping):
            shapes = {role: check_template_shape(shape) for role, shape in shapes.items()}
        else:
            shapes = check_template_shape(shapes)
        object.__setattr__(self, "template_shape", shapes)
        check_choice("layout", self.layout, LAYOUTS)

    @classmethod
    def of(cls, spec: BankSpec | Mapping[str, Any]) -> BankSpec:
        """``spec`` itself, or made from a mapping with the same keys."""
        if isinstance(spec, BankSpec):
            return spec
        if not isinstance(spec, Mapping):
            raise TypeError(f"spec must be a BankSpec or a mapping with its fields, got {type(spec).__name__}")
        known = [*cls.__dataclass_fields__]
        unknown = sorted(set(spec) - set(known))
        if unknown:
            raise ValueError(f"spec has fields {', '.join(known)}, got {', '.join(map(repr, unknown))}")
        return cls(**spec)

    def count(self, role: str) -> int:
        """Number of templates of ``role``."""
        return _look_up("templates", self.templates, role)

    def shape(self, role: str, sizes: Sequence[tuple[int, int]]) -> tuple[int, int]:
        """``(p, q)`` of ``role``, whose layers have ``sizes`` ``(out, in)``."""
        if self.template_shape is None:
            outs, ins = zip(*sizes, strict=True)
            return default_template_size(outs), default_template_size(ins)
        return _look_up("template_shape", self.template_shape, role)

    def check_roles(self, roles: Collection[str]) -> None:
        """Raise ``ValueError`` if a field names a role that is none of ``roles``, those of the model."""
        for name in ("templates", "template_shape"):
            value = getattr(self, name)
            unknown = [role for role in value if role not in roles] if isinstance(value, Mapping) else []
            if unknown:
                named = ", ".join(map(repr, unknown))
                raise ValueError(f"{name} names {named}, but the roles of the model are {', '.join(roles)}")


def _look_up(name: str, value: Any, role: str) -> Any:
    if not isinstance(value, Mapping):
        return value
    if role not in value:
        raise ValueError(f"{name} names the roles {', '.join(value) or 'none'}, but the model also needs {role!r}")
    return value[role]


@dataclass
class Source:
    """What a pre-trained model leaves beside its templates.

    Attributes:
        state: state dict of the kronified model without its templates: ``<path>.scalers``, biases, norms,
            embeddings, heads and buffers.
        config: how to build that model again, and anything else; JSON.
        head_dims: sizes of that model's attention heads, which targets must have too; none: not known, any will do.
    """

    state: dict[str, Tensor]
    config: dict[str, Any] = field(default_factory=dict)
    head_dims: list[int] = field(default_factory=list)


class TemplateBank(KeepsShared):
    """Role name → templates ``(N, p, q, *kernel)``, each a parameter that all layers of the role share.

    Args:
        templates: floating tensors; a parameter is kept as the object it is. Role names consist of letters,
            digits, ``_`` and ``-``.
        layout: ``"block"`` or ``"interleaved"``, for all layers.

    Attributes:
        layout: as given.
        source: the pre-trained model's other numbers, or ``None``; see ``take_source``.
        relative_error: for each role, how far an extracted bank is from the weights it was extracted from.

    Raises:
        TypeError, ValueError: a role name, shape, dtype or layout that cannot be.
    """

    def __init__(self, templates: Mapping[str, Tensor], layout: str = "block") -> None:
        super().__init__()
        try:
            templates = dict(templates)
        except (TypeError, ValueError):
            expected = "a mapping of role names to tensors"
            raise TypeError(f"templates must be {expected}, got {type(templates).__name__}") from None
        check_choice("layout", layout, LAYOUTS)
        self.layout = layout
        self.source: Source | None = None
        self.relative_error: dict[str, float] = {}
        self.roles: tuple[str, ...] = tuple(templates)
        for role, tensor in templates.items():
            check_role(role)
            check_floating(f"templates[{role!r}]", tensor)
            if not 3 <= tensor.dim() <= 6 or 0 in tensor.shape:
                raise ValueError(
                    f"templates[{role!r}] must have shape (N, p, q, *kernel), none empty, got {tuple(tensor.shape)}"
                )
            parameter = tensor if isinstance(tensor, nn.Parameter) else nn.Parameter(tensor)
            self.register_parameter(_parameter_name(role), parameter)

    def __getitem__(self, role: str) -> nn.Parameter:
        if role not in self.roles:
            raise KeyError(f"no role {role!r} in this bank, only {', '.join(self.roles)}")
        return getattr(self, _parameter_name(role))

    def __contains__(self, role: object) -> bool:
        return role in self.roles

    def __iter__(self) -> Iterator[str]:
        return iter(self.roles)

    def __len__(self) -> int:
        return len(self.roles)

    def num_parameters(self) -> int:
        """How many numbers all templates hold."""
        return sum(self[role].numel() for role in self.roles)

    def take_source(self, model: nn.Module, config: Mapping[str, Any] | None = None) -> None:
        """Fill ``source`` with all that ``model`` has beside the templates, such as scalers, norms and head.

        For after training of your own: a source is a copy, and stays as it was while ``model`` learns.

        Args:
            model: kronified with this bank.
            config: how to build ``model`` again, JSON-like.

        Raises:
            ValueError: a layer has other templates, or none has these. TypeError: ``config`` is no mapping, or no JSON.
        """
        self.check_shared(model)
        config = check_json("config", config)
        state = {name: each.cpu().clone() for name, each in model.state_dict().items() if isinstance(each, Tensor)}
        own = {name: tensor for name, tensor in state.items() if not name.endswith(".templates")}
        self.source = Source(own, config, sorted(head_dims(model)))

    def check_shared(self, model: nn.Module) -> None:
        """Raise ``ValueError`` unless ``model`` has Kron layers, all on templates of this bank."""
        held = {id(parameter) for parameter in self.parameters()}
        layers = [module for module in model.modules() if isinstance(module, KronFactors)]
        if not layers or any(id(layer.templates) not in held for layer in layers):
            found = "a layer has others" if layers else "it has none"
            raise ValueError(f"bank must hold the templates of the kronified model, but {found}")

    def extra_repr(self) -> str:
        shapes = ", ".join(f"{role}={tuple(self[role].shape)}" for role in self.roles)
        return f"{shapes}, layout={self.layout!r}"

    def save_pretrained(self, directory: str | os.PathLike[str]) -> None:
        """Write ``config.json``, ``bank.safetensors`` and, with a source, ``source.safetensors``.

        ``directory`` appears as a whole; an older bank there is replaced.

        Raises:
            ValueError: a template holds NaN or infinity, or anything else NaN.
            TypeError: the source's config is no JSON; ``directory`` is no path.
            OSError: the folder cannot be written, or holds other things; it is left as it was.
        """
        _check_path(directory)
        files: dict[str, dict[str, Tensor]] = {TEMPLATES: {role: self[role] for role in self.roles}}
        config: dict[str, Any] = {"format": FORMAT, "version": VERSION, "layout": self.layout}
        config["templates"] = {role: list(self[role].shape) for role in self.roles}
        config["relative_error"] = self.relative_error
        config["source"] = None
        if self.source is not None:
            files[SOURCE] = self.source.state
            config["source"] = self.source.config
            config["head_dims"] = self.source.head_dims
        json.dumps(config)  # what cannot be written is said before anything is
        for name, tensors in files.items():
            check_finite(name, tensors)
        with atomic_dir(directory, known=FILES) as folder:
            for name, tensors in files.items():
                # Copies: safetensors refuses tensors that share memory, such as tied embeddings.
                whole = {key: t.detach().cpu().contiguous().clone() for key, t in tensors.items()}
                safetensors.torch.save_file(whole, folder / name)
            config["sha256"] = {name: digest(folder / name) for name in files}
            (folder / CONFIG).write_text(json.dumps(config, indent=2), encoding="utf-8")

    @classmethod
    def from_pretrained(cls, directory: str | os.PathLike[str]) -> TemplateBank:
        """Read what ``save_pretrained`` wrote, onto the CPU.

        Raises:
            FileNotFoundError: no such folder. ValueError: it holds no bank, or a damaged one. TypeError: no path.
        """
        directory = _check_path(directory)
        if not directory.is_dir():
            raise FileNotFoundError(f"no folder {directory} to read a template bank from")
        try:
            content = read_files(directory)
            bank = cls(content.templates, content.layout)
        except (OSError, ValueError, TypeError) as error:
            reason = f"no {Path(error.filename).name}" if isinstance(error, FileNotFoundError) else str(error)
            if (directory / "bank" / CONFIG).is_file():  # of a run
                reason = f"it is the folder of a run, whose bank is in {directory / 'bank'}"
            raise ValueError(f"{directory} holds no whole template bank: {reason}") from error
        bank.relative_error = content.relative_error
        if content.source is not None:
            bank.source = Source(content.source, content.source_config, content.head_dims)
        return bank


def _check_path(directory: object) -> Path:
    if not isinstance(directory, str | os.PathLike):
        raise TypeError(f"directory must be a path, got {type(directory).__name__}")
    return Path(directory)


def check_role(role: object) -> None:
    """Raise unless ``role`` can name a role."""
    if not isinstance(role, str):
        raise TypeError(f"a role must be a string, got {type(role).__name__}")
    if not re.fullmatch(r"[A-Za-z0-9_-]+", role):
        raise ValueError(f"a role must consist of letters, digits, '_' and '-', got {role!r}")


def check_json(name: str, config: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return ``config`` as a dict, an empty one for ``None``, if it can be written as JSON."""
    if config is not None and not isinstance(config, Mapping):
        raise TypeError(f"{name} must be a mapping, got {type(config).__name__}")
    config = dict(config or {})
    try:
        json.dumps(config)
    except (TypeError, ValueError) as error:
        raise type(error)(f"{name} must be JSON: {error}") from error
    return config


def _parameter_name(role: str) -> str:
    """Prefixed, so that no role is in the way of an attribute of ``nn.Module``."""
    return f"templates_{role}"
