"""Which module computes given operands: planned once for a size; on a GPU the nearest candidates are timed first."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from weit_kernels import tune
from weit_kernels.backends import module
from weit_kernels.estimates import Request
from weit_kernels.paths.convolution import ConvArgs, channels_last, run_conv, run_conv_backward
from weit_kernels.plan import Plan, choose, contenders
from weit_kernels.shapes import FEW_ROWS, KronShape


def hashable(args: Sequence[Any]) -> tuple[Any, ...]:
    """Settings of a convolution as they come through the dispatcher, lists as tuples."""
    return tuple(tuple(arg) if isinstance(arg, list) else arg for arg in args)


def linear_request(x: Tensor, T: Tensor, S: Tensor, out: int, train: bool, path: str, backend: str) -> Request:
    (N, p, q), (_, m, n) = T.shape, S.shape
    return Request(KronShape(N, m, n, p, q, out, x.shape[1]), x.shape[0], x.dtype, x.device, train, path, backend)


def conv_request(x: Tensor, T: Tensor, S: Tensor, out: int, *args: Any) -> Request:
    args = hashable(args)
    conv, (train, path, backend) = ConvArgs(*args[:5]), args[5:]
    (N, p, q, *kernel), (_, m, n) = T.shape, S.shape
    shape = KronShape(N, m, n, p, q, out, x.shape[1] // conv.groups, kernel=tuple(kernel))
    pixels = x.shape[0] * conv.output_size(x.shape[2:], kernel).numel()
    maps = (conv, tuple(x.shape[2:]), channels_last(x))
    return Request(shape, pixels, x.dtype, x.device, train, path, backend, *maps)


# What runs for sizes that were seen before: planning again would cost small layers more than their products.
_CHOSEN: dict[Any, ModuleType] = {}
_MOST_CHOSEN = 4096
# Keys whose contest had no winner: it is not held again for every new number of rows.
_UNTUNED: set[str] = set()


def _key(x: Tensor, T: Tensor, S: Tensor, out: int, args: tuple[Any, ...]) -> Any:
    """What decides between modules."""
    return x.shape, x.is_contiguous(), T.shape, S.shape, out, x.dtype, x.device, args


def settled(x: Tensor, T: Tensor, S: Tensor, out: int, args: tuple[Any, ...]) -> ModuleType | None:
    """The module that all operands like these run on; ``None`` while nothing is settled."""
    return _CHOSEN.get(_key(x, T, S, out, args))


def module_for(
    request_of: Any, calls: Any, x: Tensor, T: Tensor, S: Tensor, out: int, args: tuple[Any, ...]
) -> ModuleType:
    """The module that computes these operands; on a GPU the nearest candidates are timed first, once for a shape."""
    key = _key(x, T, S, out, args)
    chosen = _CHOSEN.get(key)
    if chosen is not None:
        return chosen
    request = request_of(x, T, S, out, *args)
    plan = choose(request)
    final = request.forced or plan.tuned or request.rows == 0 or request.key in _UNTUNED
    if not final and x.is_cuda and tune.mode() != "0":
        if not tune.may_time(x.device):
            return module(plan.path, plan.backend)  # decided for this call only: a later one may time
        plan = _tuned(request, plan, calls, x, T, S, out, args)
    if len(_CHOSEN) >= _MOST_CHOSEN:
        _CHOSEN.clear()
    _CHOSEN[key] = chosen = module(plan.path, plan.backend)
    return chosen


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
    # Few rows take less time than their launches, which is what callers wait for.
    timer = tune.calls_timer if request.rows <= FEW_ROWS and not request.train else tune.cuda_timer
    if tune.contest(request.key, runs, partial(made, module(plain.path, "torch")), timer):
        return choose(request)
    _UNTUNED.add(request.key)
    return plan


class LinearCalls:
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


class ConvCalls(LinearCalls):
    """The same for convolutions."""

    def forward(self, path: ModuleType) -> Tensor:
        return run_conv(path, self.x, self.T, self.S, None, self.out, ConvArgs(*self.args[:5]))

    def backward(self, path: ModuleType, dy: Tensor) -> Sequence[Tensor | None]:
        return run_conv_backward(path, dy, self.x, self.T, self.S, [True] * 3, ConvArgs(*self.args[:5]))
