"""The custom operators: schema, kernels, fakes, autograd and autocast. The only file that talks to ``torch.library``.

Operands are in the block layout; ``functional`` turns the interleaved one into it. Two operators for each kind of layer
are closed under differentiation. With ``Φ(x, dy, T, S) = Σ S·T·dy·x``, the forward product is ``∂Φ/∂dy`` and the
backward operator returns ``∂Φ/∂x``, ``∂Φ/∂T`` and ``∂Φ/∂S``; ``Φ`` is linear in each argument, so derivatives of those
are the same two operators with one argument replaced by its tangent. Only inputs are saved for the backward pass.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from weit_kernels import transforms, tune
from weit_kernels.backends import module
from weit_kernels.paths.convolution import ConvArgs
from weit_kernels.plan import Plan, Request, choose, contenders, cost
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
    x, bias = x.contiguous(), _dense(bias)
    return _module(_linear_request, _LinearCalls, x, T, S, out, args).linear(x, T, S, bias, out)


def _linear_backward(dy: Tensor, x: Tensor, T: Tensor, S: Tensor, need: list[bool], out: int, *args: Any) -> Triple:
    x = x.contiguous()
    path = _module(_linear_request, _LinearCalls, x, T, S, out, args)
    return _present(x, path.linear_backward(dy.contiguous(), x, T, S, need))


def _conv(x: Tensor, T: Tensor, S: Tensor, bias: Tensor | None, out: int, *args: Any) -> Tensor:
    x, bias, args = x.contiguous(), _dense(bias), _hashable(args)
    return _module(_conv_request, _ConvCalls, x, T, S, out, args).conv(x, T, S, bias, out, ConvArgs(*args[:5]))


def _conv_backward(dy: Tensor, x: Tensor, T: Tensor, S: Tensor, need: list[bool], out: int, *args: Any) -> Triple:
    x, args = x.contiguous(), _hashable(args)
    path = _module(_conv_request, _ConvCalls, x, T, S, out, args)
    return _present(x, path.conv_backward(dy.contiguous(), x, T, S, need, ConvArgs(*args[:5])))


def _dense(bias: Tensor | None) -> Tensor | None:
    """A bias whose numbers lie side by side, as the kernels read it."""
    return None if bias is None else bias.contiguous()


def _hashable(args: Sequence[Any]) -> tuple[Any, ...]:
    """Settings of a convolution as they come through the dispatcher, lists as tuples."""
    return tuple(tuple(arg) if isinstance(arg, list) else arg for arg in args)


def _linear_request(x: Tensor, T: Tensor, S: Tensor, out: int, train: bool, path: str, backend: str) -> Request:
    (N, p, q), (_, m, n) = T.shape, S.shape
    return Request(KronShape(N, m, n, p, q, out, x.shape[1]), x.shape[0], x.dtype, x.device, train, path, backend)


def _conv_request(x: Tensor, T: Tensor, S: Tensor, out: int, *args: Any) -> Request:
    args = _hashable(args)
    conv, (train, path, backend) = ConvArgs(*args[:5]), args[5:]
    (N, p, q, *kernel), (_, m, n) = T.shape, S.shape
    shape = KronShape(N, m, n, p, q, out, x.shape[1] // conv.groups, kernel=tuple(kernel))
    pixels = x.shape[0] * conv.output_size(x.shape[2:], kernel).numel()
    form = (conv.groups, conv.pointwise(T[0]), set(conv.stride) == {1}, set(conv.dilation) != {1})
    return Request(shape, pixels, x.dtype, x.device, train, path, backend, *form)


# What runs for sizes that were seen before: planning again would cost small layers more than their products.
_CHOSEN: dict[Any, ModuleType] = {}
_MOST_CHOSEN = 4096
# Keys whose contest had no winner: it is not held again for every new number of rows.
_UNTUNED: set[str] = set()


def _key(x: Tensor, T: Tensor, S: Tensor, out: int, args: tuple[Any, ...]) -> Any:
    """What decides between modules."""
    return x.shape, T.shape, S.shape, out, x.dtype, x.device, args


def _module(
    request_of: Any, calls: Any, x: Tensor, T: Tensor, S: Tensor, out: int, args: tuple[Any, ...]
) -> ModuleType:
    """The module that computes these operands; on a GPU the nearest candidates are timed first, once for a shape."""
    key = _key(x, T, S, out, args)
    chosen = _CHOSEN.get(key)
    if chosen is not None:
        return chosen
    request = request_of(x, T, S, out, *args)
    plan = choose(request)
    settled = request.forced or plan.tuned or request.rows == 0 or request.key in _UNTUNED
    if not settled and x.is_cuda and tune.mode() != "0":
        if not tune.may_time(x):
            return module(plan.path, plan.backend)  # decided for this call only: a later one may time
        plan = _tuned(request, plan, calls, x, T, S, out, args)
    if len(_CHOSEN) >= _MOST_CHOSEN:
        _CHOSEN.clear()
    _CHOSEN[key] = chosen = module(plan.path, plan.backend)
    return chosen


def settled_linear(x: Tensor, T: Tensor, S: Tensor, out: int, args: tuple[Any, ...]) -> Callable[..., Tensor] | None:
    """What every call with operands like these runs, without autograd; ``None`` while nothing is settled.

    ``x (M, in)``, ``T (N, p, q)``, ``S (N, m, n)`` in block layout and ``args`` as the operator takes them.
    """
    chosen = _CHOSEN.get(_key(x, T, S, out, args))
    if chosen is None:
        return None

    def linear(x: Tensor, T: Tensor, S: Tensor, bias: Tensor | None, out: int) -> Tensor:
        return chosen.linear(x.contiguous(), T, S, _dense(bias), out)

    return _on_its_device(linear) if x.is_cuda else linear


def settled_conv(x: Tensor, T: Tensor, S: Tensor, out: int, args: tuple[Any, ...]) -> Callable[..., Tensor] | None:
    """The same for a convolution of contiguous ``x (B, in, *spatial)``, ``T (N, p, q, *kernel)``; takes no ``out``."""
    chosen = _CHOSEN.get(_key(x, T, S, out, args))
    if chosen is None:
        return None
    settings = ConvArgs(*args[:5])

    def conv(x: Tensor, T: Tensor, S: Tensor, bias: Tensor | None) -> Tensor:
        return chosen.conv(x, T, S, _dense(bias), out, settings)

    return _on_its_device(conv) if x.is_cuda else conv


def _tuned(
    request: Request, plan: Plan, calls: Any, x: Tensor, T: Tensor, S: Tensor, out: int, args: tuple[Any, ...]
) -> Plan:
    """The plan after a contest of the nearest candidates on made-up operands of the same sizes and strides."""
    near = contenders(request, tune.mode())
    if len(near) == 1 and near[0].backend == "torch":
        return plan
    try:
        made = calls(x, T, S, out, args, request.train)
    except torch.OutOfMemoryError:  # the caller's own step may still fit
        return plan
    runs = {c.name: partial(made, module(c.path, c.backend)) for c in near}
    plain = choose(replace(request, path="auto", backend="torch"))
    if tune.contest(request.key, runs, partial(made, module(plain.path, "torch"))):
        return choose(request)
    _UNTUNED.add(request.key)
    return plan


class _LinearCalls:
    """A forward pass, and a backward pass where asked for, of any path's module on operands drawn for timing."""

    def __init__(self, x: Tensor, T: Tensor, S: Tensor, out: int, args: tuple[Any, ...], train: bool) -> None:
        generator = torch.Generator(x.device).manual_seed(0)  # the user's own stream of numbers stays as it is

        def drawn(like: Tensor, terms: int = 1) -> Tensor:
            """Scaled so that a sum of so many terms stays near 1: gradients must not overflow float16."""
            return torch.empty_like(like).normal_(std=terms**-0.5, generator=generator)

        self.x, self.T, self.S = drawn(x), drawn(T, x.shape[1] * T[0, 0, 0].numel()), drawn(S, S.shape[0])
        self.out, self.args, self.train = out, args, train
        self.dy: Tensor | None = None
        self.drawn = drawn

    def __call__(self, path: ModuleType) -> list[Tensor | None]:
        y = self.forward(path)
        if not self.train:
            return [y]
        if self.dy is None:
            self.dy = self.drawn(y, max(1, y.numel() // self.out))
        return [y, *self.backward(path, self.dy)]

    def forward(self, path: ModuleType) -> Tensor:
        return path.linear(self.x, self.T, self.S, None, self.out)

    def backward(self, path: ModuleType, dy: Tensor) -> Sequence[Tensor | None]:
        return path.linear_backward(dy, self.x, self.T, self.S, [True] * 3)


class _ConvCalls(_LinearCalls):
    """The same for convolutions."""

    def forward(self, path: ModuleType) -> Tensor:
        return path.conv(self.x, self.T, self.S, None, self.out, ConvArgs(*self.args[:5]))

    def backward(self, path: ModuleType, dy: Tensor) -> Sequence[Tensor | None]:
        return path.conv_backward(dy, self.x, self.T, self.S, [True] * 3, ConvArgs(*self.args[:5]))


def _flops(request_of: Callable[..., Request], phase: str) -> Callable[..., int]:
    """Formula for ``torch.utils.flop_counter``: the operations of the path that runs."""

    def formula(*args: Any, **_: Any) -> int:
        x, T, S, _bias, *rest = args if phase == "forward" else args[1:]
        request = request_of(x, T, S, *rest)
        return cost(request, choose(request).path, phase).flops

    return formula


def _present(like: Tensor, grads: Sequence[Tensor | None]) -> Triple:
    """An operator returns tensors: an empty one stands for a gradient that nobody needs."""
    dx, dT, dS = (like.new_empty(0) if grad is None else grad for grad in grads)
    return dx, dT, dS


def _fake_linear(x: Tensor, T: Tensor, S: Tensor, bias: Tensor | None, out: int, *_: Any) -> Tensor:
    return x.new_empty(x.shape[0], out)


def _fake_conv(x: Tensor, T: Tensor, S: Tensor, bias: Tensor | None, out: int, *args: Any) -> Tensor:
    size = ConvArgs(*_hashable(args[:5])).output_size(x.shape[2:], T.shape[3:])
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
        return partial(transforms.apply, getattr(torch.ops.weit, name + suffix).default)

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


def _on_its_device(kernel: Callable[..., Any]) -> Callable[..., Any]:
    """Triton launches on the current device, which need not be the tensors'."""

    def guarded(first: Tensor, *args: Any) -> Any:
        with torch.cuda.device_of(first):
            return kernel(first, *args)

    return guarded


def _register(name: str, args: str, request_of: Callable[..., Request], forward: Any, backward: Any, fake: Any) -> None:
    derive_forward, derive_backward = _autograd(name)
    for suffix, schema, kernel, fake_kernel, save, derive, rule in (
        ("", _FORWARD, forward, fake, _save_forward, derive_forward, transforms.forward),
        ("_backward", _BACKWARD, backward, _fake_backward, _save_backward, derive_backward, transforms.backward),
    ):
        qualified = f"weit::{name}{suffix}"
        torch.library.define(qualified, schema.format(args), tags=(torch.Tag.pt2_compliant_tag,))
        torch.library.impl(qualified, "cpu", kernel)
        torch.library.impl(qualified, "cuda", _on_its_device(kernel))
        torch.library.register_fake(qualified, fake_kernel)
        torch.library.register_autograd(qualified, derive, setup_context=save)
        op = getattr(torch.ops.weit, name + suffix)
        transforms.register(op.default, save, derive, rule)
        phase = "backward" if suffix else "forward"
        register_flop_formula(op, get_raw=True)(_flops(request_of, phase))
    for device in ("cpu", "cuda"):
        _LIBRARY.impl(name, _autocast(name, device), "Autocast" + device.upper())


def _autocast(name: str, device: str) -> Callable[..., Tensor]:
    """Like ``F.linear``: floating operands are cast to the dtype of the autocast region."""
    keys = torch._C.DispatchKeySet(getattr(torch._C.DispatchKey, "Autocast" + device.upper()))

    def kernel(*args: Any) -> Tensor:
        with torch._C._ExcludeDispatchKeyGuard(keys):
            return getattr(torch.ops.weit, name).default(*_cast(args, device))

    return kernel


def _cast(args: Sequence[Any], device: str) -> list[Any]:
    dtype = torch.get_autocast_dtype(device)

    def floating(arg: Any) -> bool:
        return isinstance(arg, Tensor) and arg.is_floating_point() and arg.dtype != torch.float64

    return [arg.to(dtype) if floating(arg) else arg for arg in args]


def call(name: str, *args: Any) -> Tensor:
    """A forward operator, also under the transforms of ``torch.func``, which come before autocast would."""
    op = getattr(torch.ops.weit, name).default
    device = args[0].device.type
    known = torch.amp.is_autocast_available(device)  # not so for meta tensors
    if known and torch.is_autocast_enabled(device) and not torch.compiler.is_compiling():
        args = tuple(_cast(args, device))
    return transforms.apply(op, *args)


_LIBRARY = torch.library.Library("weit", "FRAGMENT")
_register("kron_linear", _LINEAR, _linear_request, _linear, _linear_backward, _fake_linear)
_register("kron_conv", _CONV, _conv_request, _conv, _conv_backward, _fake_conv)
