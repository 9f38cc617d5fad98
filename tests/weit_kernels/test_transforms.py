"""``torch.vmap``, ``torch.func`` and activation checkpointing over the operators."""

import io

import pytest
import torch
from torch.func import functional_call, grad, hessian, jacfwd, jacrev, jvp, vjp, vmap
from torch.utils.checkpoint import checkpoint

from tests.weit_kernels.cases import LAYOUTS, PATHS, Case, relative_error
from weit_kernels import kron_conv2d, kron_linear, reference

CASE = Case("batched", (4,), 3, 2, 3, 5, 4, cut_out=1, cut_in=2)
CONV = {"x": (2, 5, 4, 3), "T": (2, 3, 2, 2, 2), "S": (2, 2, 3), "b": (5,)}


def close(value: torch.Tensor, truth: torch.Tensor) -> bool:
    return value.shape == truth.shape and relative_error(value, truth) < 1e-13


def linear(x, T, S, b):
    return kron_linear(x, T, S, b, out_features=CASE.out_features)


def conv(x, T, S, b):
    return kron_conv2d(x, T, S, b, padding=1, out_channels=5)


def dense_linear(x, T, S, b):
    return reference.kron_linear(x, T, S, b, out_features=CASE.out_features)


def dense_conv(x, T, S, b):
    return reference.kron_conv(x, T, S, b, out_channels=5, padding=1)


def operands(kind: str) -> list[torch.Tensor]:
    if kind == "linear":
        return CASE.operands(torch.float64)
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(size, generator=generator, dtype=torch.float64) for size in CONV.values()]


FUNCTIONS = {"linear": (linear, dense_linear), "conv": (conv, dense_conv)}
# Which of x, T, S and b are batched, and along which axis.
IN_DIMS = [(0, None, None, None), (1, None, None, None), (None, 0, None, None), (0, None, 2, None), (0, 1, 0, 1)]


def batch(tensors: list[torch.Tensor], dims: tuple[int | None, ...], size: int = 3) -> list[torch.Tensor]:
    """Stack ``size`` different versions of each batched tensor along its axis."""
    scales = [1.0, -0.5, 2.0][:size]
    return [t if d is None else torch.stack([s * t for s in scales], d) for t, d in zip(tensors, dims, strict=True)]


@pytest.mark.parametrize("dims", IN_DIMS, ids=str)
@pytest.mark.parametrize("kind", FUNCTIONS)
def test_vmap_equals_vmap_of_the_dense_layer(kind: str, dims: tuple[int | None, ...]) -> None:
    ours, dense = FUNCTIONS[kind]
    args = batch(operands(kind), dims)
    assert close(vmap(ours, dims)(*args), vmap(dense, dims)(*args))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("path", PATHS)
def test_vmap_over_inputs_is_one_call(path: str, layout: str) -> None:
    """More rows of one product, not a loop."""
    x, T, S, b = CASE.operands(torch.float64)
    inputs = torch.stack([x, 2 * x, -x])
    choice = {"out_features": CASE.out_features, "layout": layout, "path": path}
    with torch.profiler.profile() as profile:
        y = vmap(lambda x: kron_linear(x, T, S, b, **choice))(inputs)
    assert sum(event.name == "weit::kron_linear" for event in profile.events()) <= 2  # batched, and what it calls
    assert close(y, reference.kron_linear(inputs, T, S, b, out_features=CASE.out_features, layout=layout))


@pytest.mark.parametrize("kind", FUNCTIONS)
def test_func_grad(kind: str) -> None:
    ours, dense = FUNCTIONS[kind]
    args = operands(kind)
    got = grad(lambda *a: ours(*a).sin().sum(), argnums=(0, 1, 2, 3))(*args)
    expected = grad(lambda *a: dense(*a).sin().sum(), argnums=(0, 1, 2, 3))(*args)
    assert all(map(close, got, expected))


@pytest.mark.parametrize("argnums", [(0,), (1, 2, 3)])
@pytest.mark.parametrize("kind", FUNCTIONS)
def test_gradients_of_each_sample(kind: str, argnums: tuple[int, ...]) -> None:
    ours, dense = FUNCTIONS[kind]
    args = batch(operands(kind), (0, None, None, None))

    def per_sample(function):
        return vmap(grad(lambda *a: function(*a).sin().sum(), argnums=argnums), (0, None, None, None))(*args)

    assert all(map(close, per_sample(ours), per_sample(dense)))


def test_jacobian_and_second_derivative() -> None:
    x, T, S, b = Case("small", (), 2, 2, 2, 3, 2).operands(torch.float64)
    for argnum in range(3):
        got = jacrev(lambda *a: kron_linear(*a).sin(), argnum)(x, T, S, b)
        assert close(got, jacrev(lambda *a: reference.kron_linear(*a).sin(), argnum)(x, T, S, b))

    def slope(function):
        return grad(lambda T: grad(lambda S: function(x, T, S, b).sin().sum())(S).square().sum())(T)

    assert close(slope(kron_linear), slope(reference.kron_linear))


MOVED = [(0,), (1,), (3,), (1, 2), (0, 1, 2, 3)]
FORWARD = {
    "jvp": lambda f, at, by: jvp(f, at, by)[1],
    "twice": lambda f, at, by: jvp(lambda *m: jvp(f, m, by)[1], at, by)[1],
    "over reverse": lambda f, at, by: jvp(grad(lambda *m: f(*m).sum(), tuple(range(len(at)))), at, by)[1],
    "under reverse": lambda f, at, by: grad(lambda *m: jvp(f, m, by)[1].sum(), tuple(range(len(at))))(*at),
    "jacobian": lambda f, at, by: jacfwd(f, tuple(range(len(at))))(*at),
}


@pytest.mark.parametrize("argnums", MOVED, ids=str)
@pytest.mark.parametrize("mode", FORWARD)
@pytest.mark.parametrize("kind", FUNCTIONS)
def test_forward_mode(kind: str, mode: str, argnums: tuple[int, ...]) -> None:
    args = operands(kind)
    generator = torch.Generator().manual_seed(1)
    tangents = tuple(torch.randn(args[i].shape, generator=generator, dtype=torch.float64) for i in argnums)

    def derivative(function):
        def moved(*some):
            return function(*(some[argnums.index(i)] if i in argnums else arg for i, arg in enumerate(args))).sin()

        found = FORWARD[mode](moved, tuple(args[i] for i in argnums), tangents)
        return found if isinstance(found, tuple) else (found,)

    ours, dense = map(derivative, FUNCTIONS[kind])
    assert all(map(close, ours, dense))


def test_forward_mode_in_every_form() -> None:
    """Both layouts, ragged; images of both memory formats, one image, uneven padding and pointwise layers."""
    for layout in LAYOUTS:
        x, T, S, b = CASE.operands(torch.float64)
        choice = {"out_features": CASE.out_features, "layout": layout}
        got = jvp(lambda S, x=x, T=T, b=b, choice=choice: kron_linear(x, T, S, b, **choice), (S,), (S,))
        y = reference.kron_linear(x, T, S, b, **choice)
        assert close(got[0], y)
        assert close(got[1], y - b)
        x, T, S, b = operands("conv")
        for kernel, padding in ((T, "same"), (T[..., :1, :1], 0)):
            for maps in (x, x.to(memory_format=torch.channels_last), x[0]):
                choice = {"out_channels": 5, "layout": layout, "padding": padding}
                y = kron_conv2d(maps, kernel, S, b, **choice)
                got = jvp(lambda S, m=maps, k=kernel, b=b, c=choice: kron_conv2d(m, k, S, b, **c), (S,), (S,))
                assert close(got[0], y)
                assert close(got[1], y - b[:, None, None])


def test_second_derivatives_by_forward_over_reverse() -> None:
    x, T, S, b = Case("small", (), 2, 2, 2, 3, 2).operands(torch.float64)
    got = hessian(lambda T, S: kron_linear(x, T, S, b).sin().sum(), (0, 1))(T, S)
    expected = hessian(lambda T, S: reference.kron_linear(x, T, S, b).sin().sum(), (0, 1))(T, S)
    assert all(close(g, e) for row, truth in zip(got, expected, strict=True) for g, e in zip(row, truth, strict=True))


def test_an_ensemble_of_modules() -> None:
    """``functional_call`` under ``vmap``: every layer its own scalers, the templates shared."""

    class Layer(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            _, T, S, _ = CASE.operands(torch.float64)
            self.T, self.S = torch.nn.Parameter(T), torch.nn.Parameter(S)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return kron_linear(x, self.T, self.S, out_features=CASE.out_features)

    layer, x = Layer().requires_grad_(False), CASE.operands(torch.float64)[0]
    scalers = torch.stack([layer.S, 2 * layer.S])
    y = vmap(lambda S: functional_call(layer, {"S": S}, (x,)))(scalers)
    assert close(y, torch.stack([layer(x), 2 * layer(x)]))


@pytest.mark.parametrize("use_reentrant", [True, False])
@pytest.mark.parametrize("kind", FUNCTIONS)
def test_activation_checkpointing(kind: str, use_reentrant: bool) -> None:
    function = FUNCTIONS[kind][0]

    def gradients(call):
        leaves = [t.requires_grad_() for t in operands(kind)]
        call(*leaves).sin().sum().backward()
        return [t.grad for t in leaves]

    kept = gradients(lambda *a: function(*a).relu())
    again = gradients(lambda *a: checkpoint(lambda *b: function(*b).relu(), *a, use_reentrant=use_reentrant))
    # The reentrant kind first runs without gradients, where another path may be the fastest.
    assert all(map(close if use_reentrant else torch.equal, again, kept))


def test_func_grad_under_autocast() -> None:
    """Gradients come back in the operands' own dtype and equal those of the operands rounded first."""
    args = [t.float() for t in operands("linear")]

    def loss(*args):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            y = linear(*args)
        assert y.dtype == torch.bfloat16
        return y.float().sum()

    got = grad(loss, argnums=(0, 1, 2, 3))(*args)
    expected = grad(lambda *a: linear(*(t.bfloat16() for t in a)).float().sum(), argnums=(0, 1, 2, 3))(*args)
    assert all(g.dtype == torch.float32 for g in got)
    assert all(map(torch.equal, got, expected))


@pytest.mark.parametrize("transform", ["grad", "vjp", "each", "vmap", "jvp"])
@pytest.mark.parametrize("kind", FUNCTIONS)
def test_transforms_inside_of_compile(kind: str, transform: str) -> None:
    ours, _ = FUNCTIONS[kind]
    x, T, S, b = operands(kind)
    stacked = torch.stack([T, -0.5 * T, 2.0 * T])

    def loss(T):
        return ours(x, T, S, b).sin().sum()

    function, given = {
        "grad": (grad(loss), T),
        "vjp": (lambda T: vjp(loss, T)[1](torch.ones((), dtype=T.dtype))[0], T),
        "each": (vmap(grad(loss)), stacked),
        "vmap": (vmap(loss), stacked),
        "jvp": (lambda T: jvp(loss, (T,), (T.cos(),))[1], T),
    }[transform]
    torch._dynamo.reset()
    assert close(torch.compile(function, backend="aot_eager")(given), function(given))


@pytest.mark.parametrize("kind", FUNCTIONS)
def test_no_layers_at_all(kind: str) -> None:
    ours, _ = FUNCTIONS[kind]
    x, T, S, b = operands(kind)

    def layer(T):
        return ours(x, T, S, b)

    for f in (layer, grad(lambda T: layer(T).sin().sum())):
        assert vmap(f)(T.new_zeros(0, *T.shape)).shape == (0, *vmap(f)(T[None]).shape[1:])


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore::DeprecationWarning")
@pytest.mark.parametrize("kind", FUNCTIONS)
def test_what_jit_traces_serves_any_number_of_rows_and_can_be_saved(kind: str) -> None:
    """With its gradients, and where such calls were seen before. The checks read sizes, of which torch warns."""
    ours, dense = FUNCTIONS[kind]
    x, *factors = (t.requires_grad_() for t in operands(kind))
    for _ in range(2):
        ours(x, *factors)
    saved = io.BytesIO()
    torch.jit.save(torch.jit.trace(ours, (x, *factors)), saved)
    saved.seek(0)
    traced = torch.jit.load(saved)
    for rows in (x, torch.cat([x, -x, x])):
        got, expected = traced(rows, *factors), dense(rows, *factors)
        assert close(got, expected)
        grads = (torch.autograd.grad(y.square().sum(), factors) for y in (got, expected))
        assert all(map(close, *grads))
