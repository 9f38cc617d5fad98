"""The compiled CPU kernels against the float64 reference: path × dtype × layout × shape × instruction set × threads."""

import pytest
import torch

from benchmarks.memory.measure import _in_fresh_thread
from tests.weit_kernels.cases import (
    CASES,
    DTYPES,
    LAYOUTS,
    RAGGED,
    Case,
    assert_as_good_as_dense,
    needs_extension,
    reference_linear,
    relative_error,
)
from weit_kernels import cpp, kron_conv2d, kron_linear
from weit_kernels.paths.convolution import ConvArgs
from weit_kernels.shapes import KronShape

pytestmark = needs_extension

PATHS = ("templates_first", "scalers_first")
COMPILED = {name: dtype for name, dtype in DTYPES.items() if name != "fp16"}
# Several panels on every axis, blocks of tokens, ragged ends; and one wide enough for results cut by features.
LARGE = [Case("many_panels", (300,), 3, 5, 4, 70, 41, cut_out=5, cut_in=9), Case("few_rows", (2,), 4, 8, 8, 100, 90)]


def ours(case: Case, path: str, layout: str = "block"):
    def function(x, T, S, b):
        return kron_linear(x, T, S, b, out_features=case.out_features, layout=layout, path=path, backend="cpp")

    return function


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", COMPILED.values(), ids=COMPILED.keys())
@pytest.mark.parametrize("case", [*CASES, *LARGE], ids=lambda case: case.name)
def test_matches_the_reference(case: Case, dtype: torch.dtype, layout: str, path: str) -> None:
    # Longer chains of sums than a library's: a little more than its error in float32 and float64.
    slack = 1.5 if dtype == torch.bfloat16 else 2.0
    assert_as_good_as_dense(ours(case, path, layout), reference_linear(case, layout), case.operands(dtype), slack)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("dtype", COMPILED.values(), ids=COMPILED.keys())
def test_every_instruction_set_of_this_machine(dtype: torch.dtype, path: str, instruction_sets) -> None:
    slack = 1.5 if dtype == torch.bfloat16 else 2.0
    for _ in instruction_sets():
        for case in (RAGGED, *LARGE):
            assert_as_good_as_dense(ours(case, path), reference_linear(case, "block"), case.operands(dtype), slack)


def test_an_instruction_set_that_this_machine_lacks() -> None:
    from weit_kernels import _C

    with pytest.raises(ValueError, match="instruction set must be one that this machine has, got mmx"):
        _C.use_instruction_set("mmx")


def gradients(case: Case, path: str, dtype: torch.dtype) -> list[torch.Tensor]:
    leaves = [t.requires_grad_() for t in case.operands(dtype)]
    y = ours(case, path)(*leaves)
    return [y.detach(), *torch.autograd.grad(y.square().sum(), leaves)]


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("case", LARGE, ids=lambda case: case.name)
@pytest.mark.usefixtures("threads")
def test_threads_change_rounding_only_and_nothing_when_determinism_is_asked_for(case: Case, path: str) -> None:
    for deterministic in (False, True):
        torch.use_deterministic_algorithms(deterministic)
        torch.set_num_threads(1)
        alone = gradients(case, path, torch.float32)
        for count in (2, 3, 8):
            torch.set_num_threads(count)
            for a, b in zip(gradients(case, path, torch.float32), alone, strict=True):
                assert relative_error(a, b) < 1e-5
                if deterministic:
                    assert torch.equal(a, b)


@pytest.mark.parametrize("deterministic", [False, True])
@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(("count", "size", "N"), [(2, 256, 4), (40, 384, 8), (5, 1200, 6)])
@pytest.mark.usefixtures("threads")
def test_sums_of_many_threads_take_bounded_memory(
    count: int, size: int, N: int, path: str, deterministic: bool
) -> None:
    """They would take 2 MiB, 189 MB, and 173 MB in five parts, of which four may stay; the planner says what they do."""
    shape = KronShape(N, 1, 1, size, size, size, size)
    x, dy, T, S = torch.randn(64, size), torch.randn(64, size), torch.randn(N, size, size), torch.randn(N, 1, 1)
    torch.set_num_threads(count)
    torch.use_deterministic_algorithms(deterministic)
    peak = _in_fresh_thread(lambda: cpp.PATHS[path].linear_backward(dy, x, T, S, [True] * 3))
    assert cpp.parts() == (8 if deterministic else count)
    said = cpp.workspace_bytes(shape, path, 64, torch.float32, True, cpp.parts())
    assert 0.7 * said < peak - x.nbytes - T.nbytes - S.nbytes < 1.02 * said
    assert said - 2 * T.nbytes < max(128 << 20, 4 * (T.nbytes + S.nbytes)) + (2 << 20)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("need", [[True, False, False], [False, True, False], [False, False, True], [False] * 3])
def test_only_what_is_needed(need: list[bool], path: str) -> None:
    x, T, S, _ = RAGGED.operands(torch.float64)
    dy = torch.randn(x.shape[0], RAGGED.out_features, dtype=x.dtype)
    everything = cpp.PATHS[path].linear_backward(dy, x, T, S, [True] * 3)
    for wanted, got, full in zip(need, cpp.PATHS[path].linear_backward(dy, x, T, S, need), everything, strict=True):
        assert (got is not None) == wanted
        assert got is None or relative_error(got, full) < 1e-14


@pytest.mark.parametrize("path", PATHS)
def test_the_gradient_of_one_tap_has_the_strides_of_its_templates(path: str) -> None:
    x, T, S = torch.randn(2, 6, 4, 4), torch.randn(3, 2, 3, 1, 1), torch.randn(3, 2, 2)
    _, dT, _ = cpp.PATHS[path].conv_backward(torch.randn(2, 4, 4, 4), x, T, S, [True] * 3, ConvArgs.plain(2))
    assert dT is not None
    assert dT.stride() == T.stride()


@pytest.mark.parametrize("path", PATHS)
def test_strided_factors_and_one_tap_convolutions(path: str) -> None:
    case = Case("strided", (6,), 3, 4, 5, 6, 7)
    x, T, S, b = case.operands(torch.float64)
    strided = [x.t().contiguous().t(), *(t.transpose(1, 2).contiguous().transpose(1, 2) for t in (T, S)), b]
    assert_as_good_as_dense(ours(case, path), reference_linear(case, "block"), strided)
    maps = x.t().reshape(1, -1, 2, 3)
    y = kron_conv2d(maps, T[..., None, None], S, b, path=path, backend="cpp")
    assert relative_error(y.flatten(2)[0].t(), ours(case, path)(x, T, S, b)) < 1e-14


@pytest.mark.parametrize(
    ("dtype", "kwargs", "message"),
    [
        (torch.float16, {}, "take float32, float64 and bfloat16, not torch.float16"),
        (torch.float32, {"path": "panel"}, "panel has no compiled kernels"),
        (torch.float32, {"path": "on_the_fly"}, "on_the_fly has no compiled kernels"),
    ],
)
def test_what_is_refused(dtype: torch.dtype, kwargs: dict, message: str) -> None:
    with pytest.raises(RuntimeError, match=message):
        kron_linear(*RAGGED.operands(dtype), out_features=RAGGED.out_features, backend="cpp", **kwargs)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda x, T, S, b: (torch.cat([x, x], 1), T, S, b), ValueError, "x must have shape"),
        (lambda x, T, S, b: (x, T[0], S, b), ValueError, "templates must have shape"),
        (lambda x, T, S, b: (x, T, S[:1], b), ValueError, "scalers must have shape"),
        (lambda x, T, S, b: (x, T.double(), S, b), TypeError, "templates has dtype"),
        (lambda x, T, S, b: (x, T, S, b[:2]), ValueError, "bias must have shape"),
        (lambda x, T, S, b: (x.int(), T, S, b), TypeError, "x must be float32, float64 or bfloat16"),
    ],
)
def test_the_operator_itself_refuses_what_would_be_read_out_of_bounds(change, error, message: str) -> None:
    with pytest.raises(error, match=message):
        torch.ops.weit_cpp.chain.default(*change(*RAGGED.operands(torch.float32)), RAGGED.out_features, False)
