"""The custom operators: schema, kernels, fakes, autograd and autocast. The only file that talks to ``torch.library``.

Operands are in the block layout; ``functional`` turns the interleaved one into it. Two operators for each kind of layer
are closed under differentiation. With ``Φ(x, dy, T, S) = Σ S·T·dy·x``, the forward product is ``∂Φ/∂dy`` and the
backward operator returns ``∂Φ/∂x``, ``∂Φ/∂T`` and ``∂Φ/∂S``; ``Φ`` is linear in each argument, so derivatives of those
are the same two operators with one argument replaced by its tangent. Only inputs are saved for the backward pass.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from weit_kernels.backends import module
from weit_kernels.paths import PATHS
from weit_kernels.paths.convolution import ConvArgs
from weit_kernels.plan import Plan, choose
from weit_kernels.shapes import KronShape

_LINEAR = "SymInt out_features, bool train, str path, str backend"
_CONV = (
    "SymInt out_channels, int[] stride, int[] padding, int[] dilation, int groups, str layout, "
    "bool train, str path, str backend"
)
_FORWARD = "(Tensor x, Tensor templates, Tensor scalers, Tensor? bias, {}) -> Tensor"
_BACKWARD = "(Tensor dy, Tensor x, Tensor templates, Tensor scalers, bool[] need, {}) -> (Tensor, Tensor, Tensor)"

Triple = tuple[Tensor, Tensor, Tensor]


def _linear(x: Tensor, T: Tensor, S: Tensor, bias: Tensor | None, out: int, *args: Any) -> Tensor:
    return _module(_linear_work(x, T, S, out, *args)).linear(x.contiguous(), T, S, bias, out)


def _linear_backward(dy: Tensor, x: Tensor, T: Tensor, S: Tensor, need: list[bool], out: int, *args: Any) -> Triple:
    path = _module(_linear_work(x, T, S, out, *args))
    return _present(x, path.linear_backward(dy.contiguous(), x.contiguous(), T, S, need))


def _conv(x: Tensor, T: Tensor, S: Tensor, bias: Tensor | None, out: int, *args: Any) -> Tensor:
    return _module(_conv_work(x, T, S, out, *args)).conv(x.contiguous(), T, S, bias, out, _conv_args(*args[:5]))


def _conv_backward(dy: Tensor, x: Tensor, T: Tensor, S: Tensor, need: list[bool], out: int, *args: Any) -> Triple:
    path = _module(_conv_work(x, T, S, out, *args))
    grads = path.conv_backward(dy.contiguous(), x.contiguous(), T, S, need, _conv_args(*args[:5]))
    return _present(x, grads)


@dataclass(frozen=True)
class _Work:
    """What a call asks for, as far as the planner cares."""

    shape: KronShape
    rows: int
    dtype: torch.dtype
    device_type: str
    train: bool
    path: str
    backend: str
    groups: int = 1


def _linear_work(x: Tensor, T: Tensor, S: Tensor, out: int, train: bool, path: str, backend: str) -> _Work:
    (N, p, q), (_, m, n) = T.shape, S.shape
    shape = KronShape(N, m, n, p, q, out, x.shape[1])
    return _Work(shape, x.shape[0], x.dtype, x.device.type, train, path, backend)


def _conv_work(x: Tensor, T: Tensor, S: Tensor, out: int, *args: Any) -> _Work:
    conv, (train, path, backend) = _conv_args(*args[:5]), args[5:]
    (N, p, q, *kernel), (_, m, n) = T.shape, S.shape
    shape = KronShape(N, m, n, p, q, out, x.shape[1] // conv.groups, kernel=tuple(kernel))
    pixels = x.shape[0] * conv.output_size(x.shape[2:], kernel).numel()
    return _Work(shape, pixels, x.dtype, x.device.type, train, path, backend, conv.groups)


def _choose(work: _Work) -> Plan:
    return choose(work.shape, work.rows, work.dtype, work.device_type, work.train, work.path, work.backend, work.groups)


def _module(work: _Work) -> ModuleType:
    plan = _choose(work)
    return module(plan.path, plan.backend)


def _flops(work_of: Callable[..., _Work], phase: str) -> Callable[..., int]:
    """Formula for ``torch.utils.flop_counter``: the operations of the path that runs."""

    def formula(*args: Any, **_: Any) -> int:
        x, T, S, _bias, *rest = args if phase == "forward" else args[1:]
        work = work_of(x, T, S, *rest)
        return PATHS[_choose(work).path].cost(work.shape, work.rows, phase, x.itemsize, x.device.type).flops

    return formula


def _conv_args(
    stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int], groups: int, layout: str
) -> ConvArgs:
    return ConvArgs(tuple(stride), tuple(padding), tuple(dilation), groups, layout)


def _present(like: Tensor, grads: Sequence[Tensor | None]) -> Triple:
    """An operator returns tensors: an empty one stands for a gradient that nobody needs."""
    dx, dT, dS = (like.new_empty(0) if grad is None else grad for grad in grads)
    return dx, dT, dS


def _fake_linear(x: Tensor, T: Tensor, S: Tensor, bias: Tensor | None, out: int, *_: Any) -> Tensor:
    return x.new_empty(x.shape[0], out)


def _fake_conv(x: Tensor, T: Tensor, S: Tensor, bias: Tensor | None, out: int, *args: Any) -> Tensor:
    size = _conv_args(*args[:5]).output_size(x.shape[2:], T.shape[3:])
    return x.new_empty(x.shape[0], out, *size)


def _fake_backward(dy: Tensor, x: Tensor, T: Tensor, S: Tensor, need: list[bool], *_: Any) -> Triple:
    dx, dT, dS = (t.new_empty(t.shape) if wanted else t.new_empty(0) for t, wanted in zip((x, T, S), need, strict=True))
    return dx, dT, dS


def _save_forward(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, T, S, _bias, *ctx.args = inputs
    ctx.save_for_backward(x, T, S)


def _save_backward(ctx: Any, inputs: tuple[Any, ...], output: Triple) -> None:
    dy, x, T, S, ctx.need, *ctx.args = inputs
    ctx.save_for_backward(dy, x, T, S)


def _autograd(name: str) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """Derivatives of the forward and the backward operator of one kind of layer."""

    def op(suffix: str) -> Any:
        return getattr(torch.ops.weit, name + suffix).default

    def derive_forward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        need = list(ctx.needs_input_grad[:3])
        grads: list[Tensor | None] = [None, None, None]
        if any(need):
            computed = op("_backward")(dy, *ctx.saved_tensors, need, *ctx.args)
            grads = [grad if wanted else None for grad, wanted in zip(computed, need, strict=True)]
        dbias = dy.sum([0, *range(2, dy.dim())]) if ctx.needs_input_grad[3] else None
        return *grads, dbias, *[None] * len(ctx.args)

    def derive_backward(ctx: Any, *tangents: Tensor | None) -> tuple[Tensor | None, ...]:
        dy, *operands = ctx.saved_tensors
        totals: list[Tensor | None] = [None] * 4

        def add(index: int, term: Tensor) -> None:
            total = totals[index]
            totals[index] = term if total is None else total + term

        for i, tangent in enumerate(tangents):
            if tangent is None or not ctx.need[i]:
                continue
            replaced = [*operands[:i], tangent, *operands[i + 1 :]]
            if ctx.needs_input_grad[0]:
                add(0, op("")(*replaced, None, *ctx.args))
            need = [wanted and k != i for k, wanted in enumerate(ctx.needs_input_grad[1:4])]
            if any(need):
                terms = op("_backward")(dy, *replaced, need, *ctx.args)
                for k in range(3):
                    if need[k]:
                        add(k + 1, terms[k])
        return *totals, *[None] * (1 + len(ctx.args))

    return derive_forward, derive_backward


def _register(name: str, args: str, work: Callable[..., _Work], forward: Any, backward: Any, fake: Any) -> None:
    derive_forward, derive_backward = _autograd(name)
    for suffix, schema, kernel, fake_kernel, save, derive in (
        ("", _FORWARD, forward, fake, _save_forward, derive_forward),
        ("_backward", _BACKWARD, backward, _fake_backward, _save_backward, derive_backward),
    ):
        qualified = f"weit::{name}{suffix}"
        torch.library.define(qualified, schema.format(args), tags=(torch.Tag.pt2_compliant_tag,))
        torch.library.impl(qualified, ("cpu", "cuda"), kernel)
        torch.library.register_fake(qualified, fake_kernel)
        torch.library.register_autograd(qualified, derive, setup_context=save)
        phase = "backward" if suffix else "forward"
        register_flop_formula(getattr(torch.ops.weit, name + suffix), get_raw=True)(_flops(work, phase))
    for device in ("cpu", "cuda"):
        _LIBRARY.impl(name, _autocast(name, device), "Autocast" + device.upper())


def _autocast(name: str, device: str) -> Callable[..., Tensor]:
    """Like ``F.linear``: floating operands are cast to the dtype of the autocast region."""
    keys = torch._C.DispatchKeySet(getattr(torch._C.DispatchKey, "Autocast" + device.upper()))

    def cast(value: Any) -> Any:
        if isinstance(value, Tensor) and value.is_floating_point() and value.dtype != torch.float64:
            return value.to(torch.get_autocast_dtype(device))
        return value

    def kernel(*args: Any) -> Tensor:
        with torch._C._ExcludeDispatchKeyGuard(keys):
            return getattr(torch.ops.weit, name).default(*map(cast, args))

    return kernel


_LIBRARY = torch.library.Library("weit", "FRAGMENT")
_register("kron_linear", _LINEAR, _linear_work, _linear, _linear_backward, _fake_linear)
_register("kron_conv", _CONV, _conv_work, _conv, _conv_backward, _fake_conv)
