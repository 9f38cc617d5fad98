"""``kron_linear``: every path × dtype × layout × shape against the float64 reference, and what callers rely on."""

from itertools import product

import pytest
import torch

from tests.weit_kernels.cases import (
    CASES,
    DTYPES,
    LAYOUTS,
    PATHS,
    RAGGED,
    Case,
    assert_as_good_as_dense,
    reference_linear,
    relative_error,
)
from weit_kernels import kron_linear, kron_weight
from weit_kernels.backends import LINEAR, Form, why_not
from weit_kernels.paths import blocks, panel


@pytest.fixture(params=["shipped", "whole", "cut"])
def block_size(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Run as shipped, as large weights do, and with blocks so small that every loop goes round several times."""
    if request.param == "shipped":
        return request.param
    monkeypatch.setattr(panel, "SMALL_BYTES", 0)
    if request.param == "cut":
        monkeypatch.setattr(blocks, "CPU_BLOCK_BYTES", 512)
        monkeypatch.setattr(panel, "WORKSPACE_BYTES", 1400)
    monkeypatch.setattr(panel, "CHUNK_BYTES", 300)
    return request.param


@pytest.mark.parametrize("path", [*PATHS, "auto"])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES.keys())
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
@pytest.mark.usefixtures("block_size")
def test_matches_the_reference(case: Case, dtype: torch.dtype, layout: str, path: str) -> None:
    def ours(x, T, S, b):
        return kron_linear(x, T, S, b, out_features=case.out_features, layout=layout, path=path)

    # Cutting the work into many blocks rounds 16-bit partial results more often than one dense product does.
    assert_as_good_as_dense(ours, reference_linear(case, layout), case.operands(dtype), slack=3.0)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("path", PATHS)
def test_without_bias(path: str, layout: str) -> None:
    x, T, S, _ = RAGGED.operands(torch.float64)
    y = kron_linear(x, T, S, out_features=RAGGED.out_features, layout=layout, path=path)
    assert relative_error(y, reference_linear(RAGGED, layout)(x, T, S, None)) < 1e-14


@pytest.mark.parametrize("path", PATHS)
def test_non_contiguous_operands(path: str) -> None:
    case = Case("strided", (4, 6), 3, 4, 5, 6, 7)
    x, T, S, b = case.operands(torch.float64)
    strided = [x.transpose(0, 1), *(t.transpose(1, 2).contiguous().transpose(1, 2) for t in (T, S)), b]
    strided[3] = torch.stack([b, b], 1)[:, 0]
    assert not any(t.is_contiguous() for t in strided)

    def ours(*operands):
        return kron_linear(*operands, path=path)

    leaves = [t.detach().requires_grad_() for t in strided]
    y = ours(*leaves)
    y.backward(torch.ones_like(y).transpose(0, 1).contiguous().transpose(0, 1))
    plain = [t.detach().clone(memory_format=torch.contiguous_format).requires_grad_() for t in strided]
    z = reference_linear(case, "block")(*plain)
    z.backward(torch.ones_like(z))
    assert relative_error(y.detach(), z.detach()) < 1e-14
    for a, c in zip(leaves, plain, strict=True):
        assert relative_error(a.grad, c.grad) < 1e-14


@pytest.mark.parametrize("rows", [3, 0])
@pytest.mark.parametrize("backend", ["torch", "cpp", "triton"])
@pytest.mark.parametrize("path", [*PATHS, "on_the_fly"])
def test_gradients_lie_as_the_operators_promise(path: str, backend: str, rows: int) -> None:
    """Whatever the factors' strides; those of an axis of one count too, for DDP compares them."""
    forms = {kernel: Form.of(kernel) if kernel else LINEAR for kernel in ((), (1, 1), (2, 2))}
    reasons = {k: why_not(path, backend, torch.device("cpu"), torch.float32, form) for k, form in forms.items()}
    if all(reasons.values()):
        pytest.skip(reasons[()])
    for one, kernel in product(("N", "m", "n", "p", "q"), (kernel for kernel, why in reasons.items() if not why)):
        N, m, n, p, q = ({"N": 2, "m": 3, "n": 2, "p": 4, "q": 3} | {one: 1}).values()
        size = [k + 1 for k in kernel]
        dy, x = torch.randn(rows, m * p, *[2 for _ in kernel]), torch.randn(rows, n * q, *size)
        factors = torch.randn(N, p, q, *kernel), torch.randn(N, m, n)
        transposed = [t.transpose(1, 2).contiguous().transpose(1, 2) for t in factors]
        settings = ([1, 1], [0, 0], [1, 1], 1, "block") if kernel else ()
        backward = torch.ops.weit.kron_conv_backward if kernel else torch.ops.weit.kron_linear_backward
        for operands in ([dy, x, *factors], [dy, x, *transposed]):
            rest = ([True] * 3, m * p, *settings, True, path, backend)
            strides = [grad.stride() for grad in backward(*operands, *rest)]
            assert strides == [torch.empty(t.shape).stride() for t in (x, *factors)]
            assert strides == [grad.stride() for grad in backward(*(t.to("meta") for t in operands), *rest)]


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("wanted", ["x", "T", "S", "b", "xT", "xS", "TS"])
def test_only_needed_gradients(path: str, wanted: str) -> None:
    names, operands = "xTSb", RAGGED.operands(torch.float64)
    want = [name in wanted for name in names]

    def grads(function):
        leaves = [t.clone().requires_grad_(w) for t, w in zip(operands, want, strict=True)]
        function(*leaves).square().sum().backward()
        return [leaf.grad for leaf in leaves]

    ours = grads(lambda *a: kron_linear(*a, out_features=RAGGED.out_features, path=path))
    theirs = grads(reference_linear(RAGGED, "block"))
    for w, a, c in zip(want, ours, theirs, strict=True):
        assert (a is not None) == w
        if w:
            assert relative_error(a, c) < 1e-13


def test_gradient_of_the_dense_weight() -> None:
    """``kron_weight`` is differentiable too, and agrees with the operator about its factors."""
    x, T, S, _ = RAGGED.operands(torch.float64)
    sizes = {"out_features": RAGGED.out_features}
    factors = [t.requires_grad_() for t in (T, S)]
    weight = kron_weight(T, S, in_features=RAGGED.in_features, **sizes)
    through_weight = torch.autograd.grad((x @ weight.mT).square().sum(), factors)
    through_operator = torch.autograd.grad(kron_linear(x, T, S, **sizes).square().sum(), factors)
    for a, c in zip(through_operator, through_weight, strict=True):
        assert relative_error(a, c) < 1e-13


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("path", [*PATHS, "on_the_fly"])
def test_bias_of_any_stride(path: str, layout: str) -> None:
    case = Case("bias", (5,), 2, 3, 4, 6, 7)
    backend = "triton" if path == "on_the_fly" else "auto"
    if backend == "triton":
        pytest.importorskip("triton", reason="Triton is not installed")
    x, T, S, b = case.operands(torch.float32)
    for bias in (torch.stack([b, b, b], 1)[:, 1], b[:1].expand(len(b))):
        y = kron_linear(x, T, S, bias, layout=layout, path=path, backend=backend)
        assert relative_error(y, reference_linear(case, layout)(x, T, S, bias)) < 1e-5
