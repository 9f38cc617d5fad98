"""The compiled convolutions against the float64 reference: path × dtype × layout × window × instruction set × threads."""

from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks.memory.measure import _in_fresh_thread
from tests.weit_kernels.cases import DTYPES, LAYOUTS, assert_as_good_as_dense, needs_extension, relative_error
from weit_kernels import cpp, kron_conv1d, kron_conv2d, kron_conv3d, reference
from weit_kernels.choice import conv_request
from weit_kernels.paths.convolution import ConvArgs
from weit_kernels.plan import choose

pytestmark = needs_extension

PATHS = ("templates_first", "scalers_first")
COMPILED = {name: dtype for name, dtype in DTYPES.items() if name != "fp16"}


@dataclass(frozen=True)
class Conv:
    """Images, factors, how many channels the last blocks lack, and the window."""

    name: str
    images: tuple[int, int, int]
    factors: tuple[int, int, int, int, int]
    kernel: tuple[int, int] = (3, 3)
    cut_out: int = 0
    cut_in: int = 0
    settings: dict[str, Any] = field(default_factory=dict)

    @property
    def out(self) -> int:
        return self.factors[1] * self.factors[3] - self.cut_out

    def operands(self, dtype: torch.dtype) -> list[Tensor]:
        """``x``, ``templates``, ``scalers``, ``bias``."""
        (B, H, W), (N, m, n, p, q), g = self.images, self.factors, torch.Generator().manual_seed(0)

        def draw(*shape: int, scale: float = 1.0) -> Tensor:
            return (scale * torch.randn(shape, generator=g, dtype=torch.float64)).to(dtype)

        terms = n * q * self.kernel[0] * self.kernel[1]
        templates = draw(N, p, q, *self.kernel, scale=terms**-0.5)
        return [draw(B, n * q - self.cut_in, H, W), templates, draw(N, m, n, scale=N**-0.5), draw(self.out)]

    def ours(self, path: str, layout: str = "block"):
        settings = {**self.settings, "out_channels": self.out, "layout": layout}
        return lambda x, T, S, b: kron_conv2d(x, T, S, b, path=path, backend="cpp", **settings)

    def reference(self, layout: str = "block"):
        settings = {**self.settings, "out_channels": self.out, "layout": layout}
        return lambda x, T, S, b: reference.kron_conv(x, T, S, b, **settings)


CASES = [
    Conv("same", (2, 7, 6), (3, 4, 2, 5, 6), settings={"padding": 1}),
    Conv("valid", (2, 7, 6), (3, 2, 4, 6, 5)),
    Conv("ragged", (3, 5, 8), (3, 4, 3, 7, 9), cut_out=3, cut_in=4, settings={"padding": (1, 0)}),
    Conv("dilated", (2, 9, 8), (2, 3, 2, 4, 5), (2, 3), settings={"padding": (1, 3), "dilation": (3, 2)}),
    Conv("more_padding_than_reach", (1, 4, 3), (2, 2, 3, 5, 4), settings={"padding": (4, 3)}),
    Conv("one_line", (2, 1, 9), (2, 2, 2, 4, 4), (1, 5), settings={"padding": (0, 2)}),
    Conv("one_column", (2, 9, 1), (2, 2, 2, 4, 4), (5, 1), settings={"padding": (2, 0)}),
    Conv("one_pixel", (1, 1, 1), (2, 3, 2, 4, 5), settings={"padding": 1}),
    Conv("padded_tap", (2, 4, 5), (2, 3, 2, 4, 5), (1, 1), settings={"padding": 1}),
    Conv("pointwise", (3, 5, 5), (4, 6, 3, 20, 33), (1, 1), cut_out=5, cut_in=2),
    Conv("pointwise_one_pixel", (5, 1, 1), (4, 3, 6, 8, 9), (1, 1)),
    # Few strips of pixels with work for two cores: these share out the channels of the result.
    Conv("few_pixels", (2, 3, 3), (4, 5, 4, 70, 41), (1, 1), cut_out=5, cut_in=9),
]
# One image whose last strip of pixels is one vector, of two lanes to sixteen.
HALF_A_STRIP = [
    Conv(f"half_a_strip_{h * w}", (1, h, w), (3, 14, 3, 19, 9), (1, 1), cut_out=5, cut_in=2)
    for h, w in ((1, 6), (2, 6), (4, 6), (6, 8))
]
# Several panels on every axis, blocks that end inside an image, sums over many pixels.
LARGE = Conv("large", (3, 20, 17), (3, 3, 5, 40, 36), cut_out=7, cut_in=3, settings={"padding": 1})
# The same with even numbers of rows a pixel, which hardware that multiplies pairs of them takes, on lines of many rows.
LARGE_EVEN = Conv("large_even", (2, 19, 40), (3, 8, 6, 41, 37), cut_out=7, cut_in=3, settings={"padding": 1})
LARGE_POINTWISE = Conv("large_pointwise", (3, 20, 17), (3, 5, 4, 70, 41), (1, 1), cut_out=5, cut_in=9)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", COMPILED.values(), ids=COMPILED.keys())
@pytest.mark.parametrize(
    "case", [*CASES, *HALF_A_STRIP, LARGE, LARGE_EVEN, LARGE_POINTWISE], ids=lambda case: case.name
)
def test_matches_the_reference(case: Conv, dtype: torch.dtype, layout: str, path: str) -> None:
    assert_as_good_as_dense(case.ours(path, layout), case.reference(layout), case.operands(dtype), slack=3.0)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("dtype", COMPILED.values(), ids=COMPILED.keys())
def test_every_instruction_set_of_this_machine(dtype: torch.dtype, path: str, instruction_sets) -> None:
    for _ in instruction_sets():
        for case in (LARGE, LARGE_EVEN, LARGE_POINTWISE, *HALF_A_STRIP, CASES[2]):
            assert_as_good_as_dense(case.ours(path), case.reference(), case.operands(dtype), slack=3.0)


def gradients(case: Conv, path: str) -> list[Tensor]:
    leaves = [t.requires_grad_() for t in case.operands(torch.float32)]
    y = case.ours(path)(*leaves)
    return [y.detach(), *torch.autograd.grad(y.square().sum(), leaves)]


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("case", [LARGE, LARGE_EVEN, LARGE_POINTWISE], ids=lambda case: case.name)
@pytest.mark.usefixtures("threads")
def test_threads_change_rounding_only_and_nothing_when_determinism_is_asked_for(case: Conv, path: str) -> None:
    for deterministic in (False, True):
        torch.use_deterministic_algorithms(deterministic)
        torch.set_num_threads(1)
        alone = gradients(case, path)
        for count in (2, 3, 8):
            torch.set_num_threads(count)
            for a, b in zip(gradients(case, path), alone, strict=True):
                assert relative_error(a, b) < 1e-5
                if deterministic:
                    assert torch.equal(a, b)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("case", [CASES[2], LARGE_POINTWISE], ids=lambda case: case.name)
@pytest.mark.parametrize("need", [[True, False, False], [False, True, False], [False, False, True], [False] * 3])
def test_only_what_is_needed(need: list[bool], case: Conv, path: str) -> None:
    x, T, S, b = case.operands(torch.float64)
    pads = case.settings.get("padding", (0, 0))
    args, dy = ConvArgs((1, 1), pads, (1, 1)), torch.randn_like(case.ours(path)(x, T, S, b))
    everything = cpp.PATHS[path].conv_backward(dy, x, T, S, [True] * 3, args)
    for wanted, got, full in zip(need, cpp.PATHS[path].conv_backward(dy, x, T, S, need, args), everything, strict=True):
        assert (got is not None) == wanted
        assert got is None or relative_error(got, full) < 1e-14


@pytest.mark.parametrize("path", PATHS)
def test_strided_operands_channels_last_and_unbatched_images(path: str) -> None:
    case = CASES[0]
    x, T, S, b = case.operands(torch.float64)
    y = case.ours(path)(x, T, S, b)
    strided = [x.mT.contiguous().mT, T.transpose(1, 2).contiguous().transpose(1, 2), S.mT.contiguous().mT, b]
    assert_as_good_as_dense(case.ours(path), case.reference(), strided)
    assert relative_error(case.ours(path)(x.to(memory_format=torch.channels_last), T, S, b), y) < 1e-15
    assert relative_error(case.ours(path)(x[0], T, S, b), y[0]) < 1e-15


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("case", [CASES[0], CASES[-2]], ids=lambda case: case.name)
def test_no_images(case: Conv, path: str) -> None:
    x, T, S, b = (t.requires_grad_() for t in case.operands(torch.float64))
    y = case.ours(path)(x[:0], T, S, b)
    assert y.shape == (0, *case.ours(path)(x, T, S, b).shape[1:])
    y.sum().backward()
    assert torch.equal(T.grad, torch.zeros_like(T))
    assert torch.equal(S.grad, torch.zeros_like(S))


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("frozen", [0, 1, 2])
def test_no_images_and_something_frozen(frozen: int, path: str) -> None:
    case = CASES[1]
    operands = case.operands(torch.float32)
    learned = [t.requires_grad_() for i, t in enumerate(operands) if i != frozen]
    case.ours(path)(operands[0][:0], *operands[1:]).sum().backward()
    assert all(t.grad is None or not t.grad.any() for t in learned)


@pytest.mark.parametrize("path", PATHS)
def test_derivatives_of_first_and_second_order(path: str) -> None:
    case = Conv("tiny", (1, 3, 2), (2, 2, 2, 2, 2), (2, 2), cut_in=1, settings={"padding": 1})
    leaves = [t.requires_grad_() for t in case.operands(torch.float64)]
    assert torch.autograd.gradcheck(case.ours(path), leaves)
    assert torch.autograd.gradgradcheck(case.ours(path), leaves)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(("dims", "function"), [(1, kron_conv1d), (3, kron_conv3d)])
def test_one_tap_in_other_dimensions(dims: int, function, path: str) -> None:
    x, T, S, b = LARGE_POINTWISE.operands(torch.float64)
    maps, taps = x.unflatten(2, (4, 5)) if dims == 3 else x.flatten(2), T.view(*T.shape[:3], *[1] * dims)
    y = function(maps, taps, S, b, out_channels=LARGE_POINTWISE.out, path=path, backend="cpp")
    assert y.shape[2:] == maps.shape[2:]
    assert relative_error(y.flatten(2), LARGE_POINTWISE.ours(path)(x, T, S, b).flatten(2)) < 1e-15


@pytest.mark.parametrize(
    ("function", "dims", "settings"),
    [
        (kron_conv2d, 2, {"stride": 2}),
        (kron_conv2d, 2, {"stride": (1, 2)}),
        (kron_conv2d, 2, {"groups": 2}),
        (kron_conv1d, 1, {}),
        (kron_conv3d, 3, {}),
    ],
)
def test_what_is_left_to_plain_torch(function, dims: int, settings: dict[str, Any]) -> None:
    """Refused when asked for; ``"auto"`` takes another backend."""
    groups = settings.get("groups", 1)
    x, T, S = torch.randn(2, 8 * groups, *[5] * dims), torch.randn(2, 4, 4, *[3] * dims), torch.randn(2, 2, 2)
    with pytest.raises(RuntimeError, match=r"convolutions of two axes and stride 1|only panel handles"):
        function(x, T, S, path="templates_first", backend="cpp", **settings)
    truth = reference.kron_conv(x.double(), T.double(), S.double(), **settings)
    assert relative_error(function(x, T, S, **settings), truth) < 1e-6


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda x, T, S, b: (torch.cat([x, x], 1), T, S, b), ValueError, "x must have shape"),
        (lambda x, T, S, b: (x[0], T, S, b), ValueError, "x must have 4 axes"),
        (lambda x, T, S, b: (x, T, S[:1], b), ValueError, "scalers must have shape"),
        (lambda x, T, S, b: (x, T.double(), S, b), TypeError, "templates has dtype"),
        (lambda x, T, S, b: (x, T, S, b[:2]), ValueError, "bias must have shape"),
        (lambda x, T, S, b: (x[..., :1, :1], T, S, b), ValueError, "smaller than the window"),
        (lambda x, T, S, b: (x[..., :0, :], T, S, b), ValueError, "images must not be empty"),
        (lambda x, T, S, b: (x, T[:0], S[:0], b), ValueError, "N at least 1"),
        (lambda x, T, S, b: (x.half(), T.half(), S.half(), b.half()), TypeError, "Half|float16"),
    ],
)
def test_the_operator_itself_refuses_what_would_be_read_out_of_bounds(change, error, message: str) -> None:
    case = CASES[1]
    with pytest.raises(error, match=message):
        torch.ops.weit_cpp.conv.default(*change(*case.operands(torch.float32)), case.out, (0, 0), (1, 1), False)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(
    ("size", "kernel", "N"),
    [((3, 1000), (3, 3), 2), ((12, 12), (3, 3), 2), ((3, 1000), (1, 1), 2), ((12, 12), (1, 1), 128)],
)
def test_the_plan_says_what_a_block_takes(size: tuple[int, int], kernel: tuple[int, int], N: int, path: str) -> None:
    """With a window at least a line of an image and what is around it, however long; without, all templates of a square."""
    x, T, S, _ = Conv("wide", (1, *size), (N, 4, 8, 32, 32), kernel).operands(torch.float32)
    args = ConvArgs((1, 1), (kernel[0] // 2, kernel[1] // 2), (1, 1))
    for train in (False, True):
        made: list[Tensor] = []
        request = conv_request(x, T, S, 128, *vars(args).values(), train, path, "cpp")
        peak = (
            _in_fresh_thread(lambda made=made: made.append(cpp.PATHS[path].conv(x, T, S, None, 128, args)))
            - made[0].nbytes
        )
        if train:
            back = _in_fresh_thread(lambda dy=made[0]: cpp.PATHS[path].conv_backward(dy, x, T, S, [True] * 3, args))
            peak = max(peak, back - x.nbytes - T.nbytes - S.nbytes)
        assert 0.4 * choose(request).workspace_bytes < peak < 1.25 * choose(request).workspace_bytes
