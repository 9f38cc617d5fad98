"""The custom operators: schema, kernels, fakes, autograd and autocast. The only file that talks to ``torch.library``.

Operands are in the block layout; ``functional`` and ``functional_conv`` turn the interleaved one into it. Two operators
for each kind of layer are closed under differentiation. With ``Φ(x, dy, T, S) = Σ S·T·dy·x``, the forward product is
``∂Φ/∂dy`` and the backward operator returns ``∂Φ/∂x``, ``∂Φ/∂T`` and ``∂Φ/∂S``; ``Φ`` is linear in each argument, so
derivatives of those are the same two operators with one argument replaced by its tangent. Only inputs are saved for the
backward pass. Factors may have another dtype than ``x``, as under autocast: they are cast while an operator runs, so that
layers which share them keep no copies, and gradients come in the factors' dtypes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from weit_kernels import transforms
from weit_kernels.choice import ConvCalls, LinearCalls, conv_request, hashable, linear_request, module_for, settled
from weit_kernels.direct import Direct, Grads, below_autograd, bias_gradient, keep, kept
from weit_kernels.estimates import Request, cost
from weit_kernels.paths.convolution import ConvArgs, memory_format, run_conv, run_conv_backward
from weit_kernels.plan import choose
from weit_kernels.shapes import computed_dtype

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
    return module_for(linear_request, LinearCalls, x, T, S, out, args).linear(x, T, S, bias, out)


def _linear_backward(dy: Tensor, x: Tensor, T: Tensor, S: Tensor, need: list[bool], out: int, *args: Any) -> Triple:
    x = x.contiguous()
    path = module_for(linear_request, LinearCalls, x, T, S, out, args)
    return _present(x, path.linear_backward(dy.contiguous(), x, T, S, need))


def _conv(x: Tensor, T: Tensor, S: Tensor, bias: Tensor | None, out: int, *args: Any) -> Tensor:
    args = hashable(args)
    path = module_for(conv_request, ConvCalls, x, T, S, out, args)
    return run_conv(path, x, T, S, _dense(bias), out, ConvArgs(*args[:5]))


def _conv_backward(dy: Tensor, x: Tensor, T: Tensor, S: Tensor, need: list[bool], out: int, *args: Any) -> Triple:
    args = hashable(args)
    path = module_for(conv_request, ConvCalls, x, T, S, out, args)
    return _present(x, run_conv_backward(path, dy, x, T, S, need, ConvArgs(*args[:5])))


def _dense(bias: Tensor | None) -> Tensor | None:
    """A bias whose numbers lie side by side, as the kernels read it."""
    return None if bias is None else bias.contiguous()


def direct_call(name: str, x: Tensor, T: Tensor, S: Tensor, out: int, args: tuple[Any, ...]) -> Direct | None:
    """What every call with operands like these runs, without the dispatcher; ``None`` while nothing is settled.

    ``name`` and ``args`` are the forward operator's, as are ``x``, ``T`` and ``S``.
    """
    chosen = settled(x, T, S, out, args)
    if chosen is None:
        return None
    kind = name.removeprefix("kron_")
    settings = (ConvArgs(*args[:5]),) if kind == "conv" else ()

    def forward(x: Tensor, T: Tensor, S: Tensor, bias: Tensor | None) -> Tensor:
        return getattr(chosen, kind)(x.contiguous(), T, S, _dense(bias), out, *settings)

    def backward(dy: Tensor, x: Tensor, T: Tensor, S: Tensor, need: list[bool]) -> Grads:
        return getattr(chosen, f"{kind}_backward")(dy.contiguous(), x.contiguous(), T, S, need, *settings)

    def derived(dy: Tensor, x: Tensor, T: Tensor, S: Tensor, need: list[bool]) -> Grads:
        return _gradients(name, dy, [x, T, S], need, (out, *args))

    if not x.dtype == T.dtype == S.dtype:
        forward, backward = _casting(forward), _casting_backward(backward)
    if x.is_cuda:
        forward, backward = _on_its_device(forward), _on_its_device(backward)
    return Direct(forward, backward, derived)


def _gradients(
    name: str, dy: Tensor, operands: Sequence[Tensor], need: list[bool], args: Sequence[Any]
) -> list[Tensor | None]:
    """What the backward operator returns, which can be differentiated; ``None`` for what nobody needs."""
    op = getattr(torch.ops.weit, f"{name}_backward").default
    grads = transforms.apply(op, dy, *operands, need, *args)
    return [grad if wanted else None for grad, wanted in zip(grads, need, strict=True)]


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
    size = ConvArgs(*hashable(args[:5])).output_size(x.shape[2:], T.shape[3:])
    return _empty(x, x.shape[0], out, *size)


def _fake_backward(dy: Tensor, x: Tensor, T: Tensor, S: Tensor, need: list[bool], *_: Any) -> Triple:
    dT, dS = (t.new_empty(t.shape) if wanted else t.new_empty(0) for t, wanted in zip((T, S), need[1:], strict=True))
    return _empty(x, *x.shape) if need[0] else x.new_empty(0), dT, dS


def _empty(like: Tensor, *size: int) -> Tensor:
    """Maps, or rows, in the memory format of others."""
    return torch.empty(size, dtype=like.dtype, device=like.device, memory_format=memory_format(like))


def _save_forward(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, T, S, _bias, *ctx.args = inputs
    keep(ctx, x, T, S, ctx.needs_input_grad[:3])


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
            grads = _gradients(name, dy, kept(ctx, dy), need, ctx.args)
        dbias = bias_gradient(dy) if ctx.needs_input_grad[3] else None
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


def _casting(kernel: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """A forward kernel for factors of any dtype."""

    def cast(x: Tensor, T: Tensor, S: Tensor, *args: Any) -> Tensor:
        return kernel(x, T.to(x.dtype), S.to(x.dtype), *args)

    return cast


def _casting_backward(kernel: Callable[..., Grads]) -> Callable[..., Any]:
    """A backward kernel likewise; the factors' gradients have their dtypes."""

    def cast(dy: Tensor, x: Tensor, T: Tensor, S: Tensor, *args: Any) -> Any:
        dx, dT, dS = kernel(dy, x, T.to(x.dtype), S.to(x.dtype), *args)
        return dx, None if dT is None else dT.to(T.dtype), None if dS is None else dS.to(S.dtype)

    return cast


def _register(name: str, args: str, request_of: Callable[..., Request], forward: Any, backward: Any, fake: Any) -> None:
    derive_forward, derive_backward = _autograd(name)
    for suffix, schema, kernel, fake_kernel, save, derive, rule in (
        ("", _FORWARD, _casting(forward), fake, _save_forward, derive_forward, transforms.forward),
        (
            "_backward",
            _BACKWARD,
            _casting_backward(backward),
            _fake_backward,
            _save_backward,
            derive_backward,
            transforms.backward,
        ),
    ):
        qualified = f"weit::{name}{suffix}"
        torch.library.define(qualified, schema.format(args), tags=(torch.Tag.pt2_compliant_tag,))
        bare = partial(below_autograd, kernel)
        torch.library.impl(qualified, "default", bare)
        torch.library.impl(qualified, "cuda", _on_its_device(bare))
        torch.library.register_fake(qualified, fake_kernel)
        torch.library.register_autograd(qualified, derive, setup_context=save)
        op = getattr(torch.ops.weit, name + suffix)
        transforms.register(op.default, save, derive, rule)
        phase = "backward" if suffix else "forward"
        register_flop_formula(op, get_raw=True)(_flops(request_of, phase))
    for device in ("cpu", "cuda"):
        _LIBRARY.impl(name, _autocast(name, device), "Autocast" + device.upper())


def _autocast(name: str, device: str) -> Callable[..., Tensor]:
    """Like ``F.linear``: floating operands are cast to the dtype of the autocast region, the factors inside the operator."""
    keys = torch._C.DispatchKeySet(getattr(torch._C.DispatchKey, "Autocast" + device.upper()))

    def kernel(x: Tensor, T: Tensor, S: Tensor, bias: Tensor | None, *args: Any) -> Tensor:
        x, bias = _cast(x), _cast(bias)  # the guard hides the region
        with torch._C._ExcludeDispatchKeyGuard(keys):
            return getattr(torch.ops.weit, name).default(x, T, S, bias, *args)

    return kernel


def autocast(x: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """``x`` and the bias as an autocast region wants them; the operator comes too late for ``torch.func``."""
    if torch.compiler.is_compiling() or not torch._C._is_any_autocast_enabled():
        return x, bias
    return _cast(x), _cast(bias)


def _cast(value: Any) -> Any:
    return value.to(computed_dtype(value)) if isinstance(value, Tensor) else value


def call(name: str, *args: Any) -> Tensor:
    """A forward operator, also under the transforms of ``torch.func``."""
    return transforms.apply(getattr(torch.ops.weit, name).default, *args)


_LIBRARY = torch.library.Library("weit", "FRAGMENT")
_register("kron_linear", _LINEAR, linear_request, _linear, _linear_backward, _fake_linear)
_register("kron_conv", _CONV, conv_request, _conv, _conv_backward, _fake_conv)
