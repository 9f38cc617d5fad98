"""Training steps that skip checks and dispatcher: the same gradients, and the long way where somebody must see them."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial

import pytest
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

from tests.weit_kernels.cases import LAYOUTS, PATHS, RAGGED, Case, reference_linear, relative_error
from weit_kernels import direct, functional, functional_conv, kron_conv2d, kron_linear, reference

LEARNS = {
    "all": (True,) * 4,
    "fitting": (True, False, True, True),
    "first_layer": (False, True, True, False),
    "input": (True, False, False, False),
    "bias": (False, False, False, True),
}
EVEN = Case("even", (5,), 3, 4, 2, 5, 6)
Operands = Callable[..., list[Tensor]]
WINDOW = {"stride": (2, 1), "padding": 1, "dilation": (1, 2)}


@pytest.fixture(autouse=True)
def _nothing_seen_before(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(direct, "_SEEN", {})


@pytest.fixture
def long_calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the operators that calls went through."""
    names: list[str] = []
    for module, real in ((functional, functional.call), (functional_conv, functional_conv.call)):
        monkeypatch.setattr(module, "call", lambda name, *args, real=real: names.append(name) or real(name, *args))
    return names


def linear_operands(*, seed: int = 0, lead: tuple[int, ...] = (4, 3), even: bool = False) -> list[Tensor]:
    x, *factors = (EVEN if even else RAGGED).operands(torch.float64, seed)
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(*lead, x.shape[-1], generator=generator, dtype=torch.float64), *factors]


def conv_operands(*, seed: int = 0, even: bool = False) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    sizes = (2, 12 if even else 10, 9, 8), (3, 5, 4, 3, 3), (3, 2, 3), (10,)
    return [torch.randn(size, generator=generator, dtype=torch.float64) for size in sizes]


def linear(*operands: Tensor, path: str = "auto", backend: str = "auto") -> Tensor:
    return kron_linear(*operands, out_features=operands[3].shape[0], path=path, backend=backend)


def conv(*operands: Tensor, path: str = "auto", backend: str = "auto") -> Tensor:
    return kron_conv2d(*operands, **WINDOW, out_channels=operands[3].shape[0], path=path, backend=backend)


KINDS = {"linear": (linear, linear_operands), "conv": (conv, conv_operands)}


@pytest.fixture(params=[("auto", "auto"), *((path, "torch") for path in PATHS)], ids=" on ".join)
def choice(request: pytest.FixtureRequest) -> dict[str, str]:
    """Path and backend: the plain ones are made of operations that other parts of torch may change."""
    return dict(zip(("path", "backend"), request.param, strict=True))


@pytest.fixture(params=KINDS)
def layer(request: pytest.FixtureRequest, choice: dict[str, str]) -> tuple[Callable[..., Tensor], Operands]:
    """A function of the four tensors, and what draws these; nothing is ragged, so that plain paths end in views."""
    function, _ = KINDS[request.param]
    return partial(function, **choice), partial(KINDS[request.param][1], even=True)


def gradients(function: Callable[..., Tensor], operands: list[Tensor], learns: tuple[bool, ...]) -> list[Tensor]:
    leaves = [t.detach().requires_grad_(learn) for t, learn in zip(operands, learns, strict=True)]
    y = function(*leaves)
    dy = torch.randn(y.shape, generator=torch.Generator().manual_seed(7), dtype=y.dtype)
    return [y.detach(), *torch.autograd.grad(y, [leaf for leaf in leaves if leaf.requires_grad], dy)]


def assert_alike(got: list[Tensor], expected: list[Tensor]) -> None:
    for ours, theirs in zip(got, expected, strict=True):
        assert ours.shape == theirs.shape
        assert relative_error(ours, theirs) < 1e-12


@pytest.mark.parametrize("path", ["auto", *PATHS])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("learns", LEARNS.values(), ids=LEARNS)
@pytest.mark.parametrize("lead", [(), (11,), (4, 3), (0, 2)], ids=str)
def test_linear(lead: tuple[int, ...], learns: tuple[bool, ...], layout: str, path: str, long_calls: list[str]) -> None:
    def ours(*operands: Tensor) -> Tensor:
        return kron_linear(*operands, out_features=RAGGED.out_features, layout=layout, path=path)

    for seed in range(3):
        operands = linear_operands(seed=seed, lead=lead)
        assert_alike(gradients(ours, operands, learns), gradients(reference_linear(RAGGED, layout), operands, learns))
    assert len(long_calls) == 1


@pytest.mark.parametrize("learns", LEARNS.values(), ids=LEARNS)
@pytest.mark.parametrize("settings", [WINDOW, {"padding": "same"}, {"padding": 1, "groups": 2}], ids=str)
def test_convolutions(settings: dict[str, object], learns: tuple[bool, ...], long_calls: list[str]) -> None:
    for seed in range(3):
        x, T, S, bias = conv_operands(seed=seed)
        operands = [x if "groups" not in settings else torch.cat([x, x], 1), T, S, bias]
        got = gradients(lambda *given: kron_conv2d(*given, **settings), operands, learns)
        assert_alike(got, gradients(lambda *given: reference.kron_conv(*given, **settings), operands, learns))
    assert len(long_calls) == 1


@pytest.mark.parametrize("kind", KINDS)
def test_what_learns_is_part_of_what_is_known(kind: str, long_calls: list[str]) -> None:
    function, operands = KINDS[kind]
    for learns in (*LEARNS.values(), *LEARNS.values()):
        gradients(function, operands(), learns)
    function(*operands())
    with torch.no_grad():
        function(*(t.requires_grad_() for t in operands()))
    assert len(long_calls) == 6  # without gradients it is one, whoever could learn


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_of_gradients(kind: str, long_calls: list[str]) -> None:
    function, operands = KINDS[kind]
    leaves = [t.requires_grad_() for t in operands()]
    function(*leaves)
    assert torch.autograd.gradgradcheck(function, leaves, fast_mode=True)
    assert len(long_calls) == 1


def test_many_gradients_at_once(layer: tuple[Callable[..., Tensor], Operands], long_calls: list[str]) -> None:
    function, operands = layer
    leaves = [t.requires_grad_() for t in operands()]
    function(*leaves)
    y = function(*leaves)
    each = torch.randn(3, *y.shape, dtype=y.dtype)
    together = torch.autograd.grad(y, leaves, each, is_grads_batched=True, retain_graph=True)
    alone = [torch.autograd.grad(y, leaves, dy, retain_graph=True) for dy in each]
    assert_alike(list(together), [torch.stack(grads) for grads in zip(*alone, strict=True)])
    assert len(long_calls) == 1


def test_results_may_be_overwritten(layer: tuple[Callable[..., Tensor], Operands], long_calls: list[str]) -> None:
    function, operands = layer
    for _ in range(2):
        got, expected = ([t.requires_grad_() for t in operands()] for _ in range(2))
        function(*got).relu_().sum().backward()
        function(*expected).relu().sum().backward()
        assert_alike([leaf.grad for leaf in got], [leaf.grad for leaf in expected])
        with torch.no_grad():
            y = function(*got)
        weight = torch.ones_like(y, requires_grad=True)
        y.mul_(weight).sum().backward()  # the result is nobody's view, so autograd may record what changes it
        assert weight.grad is not None
    assert len(long_calls) == 2


def test_operands_that_changed_since_are_noticed(
    layer: tuple[Callable[..., Tensor], Operands], long_calls: list[str]
) -> None:
    function, operands = layer
    for _ in range(2):
        leaves = [t.requires_grad_() for t in operands()]
        y = function(*leaves)
        with torch.no_grad():
            leaves[2].add_(1)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            y.sum().backward()
    assert len(long_calls) == 1


def test_operands_may_change_where_only_the_bias_learns(layer: tuple[Callable[..., Tensor], Operands]) -> None:
    function, operands = layer
    for _ in range(2):
        *frozen, bias = operands()
        y = function(*frozen, bias.requires_grad_())
        for tensor in frozen:
            tensor.add_(1)
        y.sum().backward()
        assert bias.grad.unique().tolist() == [y.numel() / bias.numel()]


@pytest.mark.parametrize("kind", ["negated", "expanded", "transposed", "subclass"])
def test_gradients_that_lie_otherwise(kind: str, layer: tuple[Callable[..., Tensor], Operands]) -> None:
    class Other(Tensor):
        pass

    function, operands = layer
    for _ in range(2):
        leaves = [t.requires_grad_() for t in operands()]
        y = function(*leaves)
        plain = torch.randn_like(y)
        given = {
            "negated": torch._neg_view(plain),
            "expanded": torch.ones((), dtype=y.dtype).expand_as(y),
            "transposed": plain.transpose(0, 1).contiguous().transpose(0, 1),
            "subclass": plain.as_subclass(Other),
        }[kind]
        expected = torch.autograd.grad(function(*leaves), leaves, torch.empty_like(plain).copy_(given))
        assert_alike([torch.Tensor(grad) for grad in torch.autograd.grad(y, leaves, given)], list(expected))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("counted", [(False, False), (True, False), (False, True)], ids=str)
def test_checkpointing(kind: str, counted: tuple[bool, bool]) -> None:
    """The second forward pass may take the short way where the first one did not, and the other way round."""
    function, operands = KINDS[kind]

    def layer(*leaves: Tensor) -> Tensor:
        return function(*leaves).relu()

    for seed in range(2):
        leaves = [t.requires_grad_() for t in operands(seed=seed)]
        with FlopCounterMode(display=False) if counted[0] else nullcontext():
            y = checkpoint(layer, *leaves, use_reentrant=False)
        with FlopCounterMode(display=False) if counted[1] else nullcontext():
            y.sum().backward()
        expected = torch.autograd.grad(layer(*leaves).sum(), leaves)
        assert_alike([leaf.grad for leaf in leaves], list(expected))


@pytest.mark.parametrize("kind", KINDS)
def test_a_backward_pass_that_is_observed(kind: str) -> None:
    function, operands = KINDS[kind]
    for _ in range(2):
        y = function(*(t.requires_grad_() for t in operands()))
    with FlopCounterMode(display=False) as counter:
        y.sum().backward(retain_graph=True)
    assert counter.get_total_flops() > 0
    with torch.profiler.profile() as profile:
        y.sum().backward()
    assert f"weit::kron_{kind}_backward" in {event.key for event in profile.key_averages()}


@pytest.mark.parametrize("regions", [("forward",), ("forward", "backward"), ("backward",)], ids="+".join)
def test_autocast(regions: tuple[str, ...], choice: dict[str, str], long_calls: list[str]) -> None:
    """As if all operands had been cast first where the forward pass is inside, and as without it where it is not."""
    dtype = torch.bfloat16 if "forward" in regions else torch.float32

    def region(name: str) -> AbstractContextManager[object]:
        return torch.autocast("cpu", torch.bfloat16) if name in regions else nullcontext()

    for seed in range(3):
        leaves = [t.float().requires_grad_() for t in linear_operands(seed=seed, even=True)]
        with region("forward"):
            y = linear(*leaves, **choice)
        with region("backward"):
            y.sum().backward()
        cast = [t.to(dtype).requires_grad_() for t in linear_operands(seed=seed, even=True)]
        expected = linear(*cast, **choice)
        expected.sum().backward()
        assert torch.equal(y, expected)
        for leaf, other in zip(leaves, cast, strict=True):
            assert torch.equal(leaf.grad, other.grad.float())
    assert len(long_calls) == (2 if "forward" in regions else 1)  # cast here or by the caller


def test_autocast_is_part_of_what_is_known() -> None:
    operands = [t.float() for t in linear_operands()]
    for enabled in (False, True, False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            assert linear(*operands).dtype == (torch.bfloat16 if enabled else torch.float32)


@pytest.mark.parametrize("kind", KINDS)
def test_dtypes_that_only_autocast_lets_differ_are_refused_after_it(kind: str) -> None:
    function, operands = KINDS[kind]
    x, T, S, bias = (t.float() for t in operands())
    with torch.autocast("cpu", torch.bfloat16):
        function(x.bfloat16(), T, S, bias.bfloat16())
    with pytest.raises(TypeError, match="dtype"):
        function(x.bfloat16(), T, S, bias.bfloat16())


@pytest.mark.parametrize("kind", KINDS)
def test_autocast_excuses_no_bad_dtype(kind: str) -> None:
    function, operands = KINDS[kind]
    x, T, S, bias = (t.float() for t in operands())
    with torch.autocast("cpu", torch.bfloat16):
        with pytest.raises(TypeError, match="x must be float64"):
            function(x.to(torch.float8_e4m3fn), T, S, bias)
        with pytest.raises(TypeError, match=r"x has dtype torch\.float64, but templates has torch\.bfloat16"):
            function(x.double(), T, S, bias)
        with pytest.raises(TypeError, match=r"bias has dtype torch\.float64"):
            function(x, T, S, bias.double())
