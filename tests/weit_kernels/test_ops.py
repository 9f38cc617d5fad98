"""The registered operators: derivatives of both orders, ``opcheck``, ``torch.compile``, autocast, and what is kept."""

import re
from itertools import product

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd import gradcheck, gradgradcheck

from tests.weit_kernels.cases import LAYOUTS, PATHS, Case, relative_error
from weit_kernels import kron_conv2d, kron_linear

TINY = Case("tiny", (2, 2), 2, 2, 3, 3, 2, cut_out=1, cut_in=1)


def leaves(case: Case = TINY) -> list[torch.Tensor]:
    return [t.requires_grad_() for t in case.operands(torch.float64)]


def conv_leaves() -> list[torch.Tensor]:
    g = torch.Generator().manual_seed(0)
    shapes = [(2, 5, 4, 3), (2, 3, 2, 2, 2), (2, 2, 3), (5,)]
    return [torch.randn(s, generator=g, dtype=torch.float64).requires_grad_() for s in shapes]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("path", PATHS)
def test_linear_derivatives(path: str, layout: str) -> None:
    def function(*args):
        return kron_linear(*args, out_features=TINY.out_features, layout=layout, path=path)

    assert gradcheck(function, leaves())
    assert gradgradcheck(function, leaves())


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("path", PATHS)
def test_conv_derivatives(path: str, layout: str) -> None:
    def function(*args):
        return kron_conv2d(*args, padding=(1, 0), stride=(2, 1), out_channels=5, layout=layout, path=path)

    assert gradcheck(function, conv_leaves())
    assert gradgradcheck(function, conv_leaves())


@pytest.mark.parametrize("layout", LAYOUTS)
def test_grouped_conv_derivatives(layout: str) -> None:
    x, T, S, _ = conv_leaves()
    x = torch.cat([x, x.flip(0)], 1).detach().requires_grad_()

    def function(x, T, S):
        return kron_conv2d(x, T, S, groups=2, layout=layout)

    assert gradcheck(function, (x, T, S))
    assert gradgradcheck(function, (x, T, S))


@pytest.mark.parametrize("path", PATHS)
def test_gradgrad_with_frozen_factors(path: str) -> None:
    """Only some inputs need gradients: the double backward must not ask for the others."""
    x, T, S, b = leaves()
    for frozen in (x, T, S):
        frozen.requires_grad_(False)
        rest = [t for t in (x, T, S) if t.requires_grad]

        def function(*args, frozen=frozen):
            values = iter(args)
            return kron_linear(*(t if t is frozen else next(values) for t in (x, T, S)), b, out_features=5, path=path)

        assert gradgradcheck(function, rest)
        frozen.requires_grad_()


@pytest.mark.parametrize("path", ["auto", *PATHS])
@pytest.mark.parametrize("with_bias", [True, False])
def test_opcheck_linear(path: str, with_bias: bool) -> None:
    x, T, S, b = leaves()
    x = x.detach().reshape(-1, x.shape[-1]).requires_grad_()
    bias = b if with_bias else None
    torch.library.opcheck(torch.ops.weit.kron_linear.default, (x, T, S, bias, 5, True, path, "auto"))
    dy = torch.randn(len(x), 5, dtype=x.dtype, requires_grad=True)
    for need in ([True] * 3, [False, True, False], [True, False, True]):
        args = (dy, x, T, S, need, 5, True, path, "torch")
        torch.library.opcheck(torch.ops.weit.kron_linear_backward.default, args)


@pytest.mark.parametrize("path", ["auto", *PATHS])
def test_opcheck_conv(path: str) -> None:
    x, T, S, b = conv_leaves()
    settings = ([1, 2], [1, 0], [1, 1], 1, "block", True, path, "auto")
    torch.library.opcheck(torch.ops.weit.kron_conv.default, (x, T, S, b, 5, *settings))
    dy = torch.randn_like(torch.ops.weit.kron_conv.default(x, T, S, b, 5, *settings))
    args = (dy.requires_grad_(), x, T, S, [True] * 3, 5, *settings)
    torch.library.opcheck(torch.ops.weit.kron_conv_backward.default, args)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_compiles_without_graph_breaks(layout: str) -> None:
    def step(x, T, S, b):
        return kron_linear(torch.relu(x), T, S, b, out_features=TINY.out_features, layout=layout).square().sum()

    compiled = torch.compile(step, fullgraph=True, backend="aot_eager", dynamic=True)
    for lead in ((2, 2), (5, 3)):
        case = Case("compiled", lead, 2, 2, 3, 3, 2, cut_out=1, cut_in=1)
        expected, got = leaves(case), leaves(case)
        step(*expected).backward()
        compiled(*got).backward()
        for a, c in zip(got, expected, strict=True):
            assert relative_error(a.grad, c.grad) < 1e-13


@pytest.mark.parametrize("backend", ["auto", "torch", "cpp"])
@pytest.mark.parametrize("path", ["auto", *PATHS])
def test_what_is_asked_for_compiles_without_graph_breaks_too(path: str, backend: str) -> None:
    choice = {"path": path, "backend": backend}

    def linear(*operands):
        return kron_linear(*operands, out_features=5, **choice)

    def conv(*operands):
        return kron_conv2d(*operands, padding=1, out_channels=5, **choice)

    torch._dynamo.reset()
    for function, operands in ((linear, leaves()), (conv, conv_leaves())):
        try:
            expected = function(*operands)
        except RuntimeError as error:  # it cannot run here, and compiled it says so too
            with pytest.raises(RuntimeError, match=re.escape(str(error))):
                torch.compile(function, backend="aot_eager")(*operands)
            continue
        compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
        assert relative_error(compiled(*operands), expected) < 1e-13


def test_what_cannot_run_says_so_while_compiling() -> None:
    def function(*operands):
        return kron_linear(*operands, out_features=5, backend="cuda")

    with pytest.raises(RuntimeError, match="the CUDA kernels need a GPU"):
        torch.compile(function, backend="aot_eager")(*leaves())


def test_conv_compiles_with_inductor() -> None:
    def step(x, T, S, b):
        return kron_conv2d(x, T, S, b, padding="same", out_channels=5, layout="interleaved").relu().sum()

    expected, got = conv_leaves(), conv_leaves()
    step(*expected).backward()
    torch.compile(step, fullgraph=True)(*got).backward()
    for a, c in zip(got, expected, strict=True):
        assert relative_error(a.grad, c.grad) < 1e-13


@pytest.mark.parametrize("path", PATHS)
def test_autocast_casts_like_linear(path: str) -> None:
    operands = [t.float().detach().requires_grad_() for t in leaves()]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = kron_linear(*operands, out_features=5, path=path)
        z = kron_linear(operands[0].bfloat16(), *operands[1:], out_features=5, path=path)
    assert y.dtype == torch.bfloat16
    assert torch.equal(y, z)
    cast = [t.detach().bfloat16().requires_grad_() for t in operands]
    expected = kron_linear(*cast, out_features=5, path=path)
    assert torch.equal(y, expected)
    y.float().sum().backward()
    expected.float().sum().backward()
    for a, c in zip(operands, cast, strict=True):
        assert a.grad.dtype == torch.float32
        assert torch.equal(a.grad, c.grad.float())


@pytest.mark.parametrize("compiled", [False, True])
def test_layers_that_share_templates_keep_no_casts_of_them(compiled: bool) -> None:
    """Nor is the sum of their gradients rounded to the region's dtype."""
    _, T, S, _ = (t.requires_grad_() for t in Case("square", (9,), 3, 4, 4, 6, 6).operands(torch.float32))
    x = torch.randn(9, 24)
    saved: list[torch.Tensor] = []

    def layers(x, T, S):
        with torch.autocast("cpu", torch.bfloat16):
            for _ in range(3):
                x = kron_linear(x, T, S)
        return x.float().sum()

    torch._dynamo.reset()
    function = torch.compile(layers, fullgraph=True, backend="aot_eager") if compiled else layers
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        y = function(x, T, S)
    own = {t.untyped_storage().data_ptr() for t in (T, S)}
    for factor in (T, S):
        assert {t.untyped_storage().data_ptr() for t in saved if t.shape == factor.shape} <= own
    got = torch.autograd.grad(y, (T, S))
    cast = [t.detach().bfloat16().requires_grad_() for t in (T, S) for _ in range(3)]
    z = x.bfloat16()
    for layer in zip(cast[:3], cast[3:], strict=True):
        z = kron_linear(z, *layer)
    each = torch.autograd.grad(z.float().sum(), cast)
    for grad, of_layers in zip(got, (each[2::-1], each[:2:-1]), strict=True):
        assert relative_error(grad, sum(g.float() for g in of_layers)) < 1e-6


@pytest.mark.parametrize("path", PATHS)
def test_only_inputs_are_saved_for_backward(path: str) -> None:
    """No intermediate and no dense weight survives the forward pass."""
    operands = Case("saved", (64,), 4, 8, 4, 16, 32).operands(torch.float32)
    given = {t.untyped_storage().data_ptr() for t in operands}
    saved: list[torch.Tensor] = []

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        saved.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        kron_linear(*(t.requires_grad_() for t in operands), path=path)
    assert {t.untyped_storage().data_ptr() for t in saved} <= given
    assert len(saved) == 3


@pytest.mark.parametrize("kind", ["linear", "conv", "channels_last"])
@pytest.mark.parametrize("need", list(product([False, True], repeat=4)), ids=str)
def test_what_no_gradient_reads_is_not_saved(kind: str, need: tuple[bool, ...]) -> None:
    """Each gradient reads the other two of x, T and S; neither the first call nor later ones of the same sizes keep more."""
    tensors = leaves() if kind == "linear" else conv_leaves()
    if kind == "channels_last":
        tensors[0] = tensors[0].detach().to(memory_format=torch.channels_last)

    def function(*operands):
        more = {"out_features": 5} if kind == "linear" else {"padding": 1, "out_channels": 5}
        return (kron_linear if kind == "linear" else kron_conv2d)(*operands, **more)

    everything = [t.detach().requires_grad_() for t in tensors]
    full = torch.autograd.grad(function(*everything).sin().sum(), everything)
    reads = sum(any(need[k] for k in range(3) if k != i) for i in range(3))
    for _ in range(3):
        operands = [t.detach().requires_grad_(wanted) for t, wanted in zip(tensors, need, strict=True)]
        saved: list[torch.Tensor] = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t, saved=saved: saved.append(t) or t, lambda t: t):
            y = function(*operands)
        assert len(saved) == reads
        if any(need):
            y.sin().sum().backward()
        for operand, wanted, expected in zip(operands, need, full, strict=True):
            assert (operand.grad is not None) == wanted
            if wanted:
                assert operand.grad.stride() == expected.stride()
                assert relative_error(operand.grad, expected) < 1e-13


def test_what_stands_in_for_a_tensor_is_of_the_gradients_kind() -> None:
    _, T, S, _ = (t.detach() for t in leaves())
    with FakeTensorMode() as mode:
        x, T, S = (mode.from_tensor(t) for t in (torch.randn(4, T.shape[2] * S.shape[2], dtype=T.dtype), T, S))
        y = kron_linear(x.requires_grad_(), T, S)
    y.sum().backward()
    assert x.grad.shape == x.shape


def test_a_frozen_layer_lets_its_input_be_overwritten() -> None:
    _, T, S, _ = (t.detach() for t in leaves())
    for _ in range(3):
        x = torch.randn(4, T.shape[2] * S.shape[2], dtype=T.dtype, requires_grad=True)
        h = x * 1.0
        h += kron_linear(h, T, S)[:, : h.shape[1]]
        h.sum().backward()
        assert x.grad.isfinite().all()


@pytest.mark.parametrize("path", ["templates_first", "scalers_first"])
def test_training_step_never_allocates_the_dense_weight(path: str) -> None:
    case = Case("large", (4,), 2, 32, 32, 32, 32)
    operands = [t.requires_grad_() for t in case.operands(torch.float32)]
    with torch.profiler.profile(profile_memory=True) as profile:
        kron_linear(*operands, path=path).sum().backward()
    largest = max(abs(event.cpu_memory_usage) for event in profile.events())
    assert 0 < largest < case.out_features * case.in_features * 4


def test_workspace_made_in_inference_mode_serves_training() -> None:
    case = Case("modes", (64,), 4, 8, 4, 16, 32)
    for path in PATHS:
        with torch.inference_mode():
            kron_linear(*case.operands(torch.float64, seed=3), path=path)
        operands = [t.requires_grad_() for t in case.operands(torch.float64, seed=4)]
        kron_linear(*operands, path=path).sum().backward()
        assert operands[1].grad.isfinite().all()


def test_calls_share_workspace_without_touching_results() -> None:
    case = Case("workspace", (64,), 4, 8, 4, 16, 32)
    for path in PATHS:
        first = kron_linear(*case.operands(torch.float64, seed=5), path=path)
        kept = first.clone()
        kron_linear(*case.operands(torch.float64, seed=6), path=path)
        assert torch.equal(first, kept)


@pytest.mark.gpu
@pytest.mark.parametrize("path", PATHS)
def test_cuda_graph_capture(path: str) -> None:
    """A training step is captured once and replayed on new data."""
    case = Case("captured", (256,), 4, 8, 4, 16, 32)
    leaves = [t.cuda().requires_grad_() for t in case.operands(torch.float32)]

    def step() -> tuple[torch.Tensor, ...]:
        y = kron_linear(*leaves, path=path)
        return (y, *torch.autograd.grad(y.square().sum(), leaves))

    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    with torch.no_grad():
        for leaf, new in zip(leaves, case.operands(torch.float32, seed=7), strict=True):
            leaf.copy_(new)
    graph.replay()
    for value, truth in zip(captured, step(), strict=True):
        assert relative_error(value, truth) < 1e-5


@pytest.mark.gpu
def test_capture_of_a_shape_never_seen_before_times_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    from weit_kernels import tune

    monkeypatch.setenv("WEIT_TUNE", "1")
    monkeypatch.setattr(tune, "contest", lambda *args: pytest.fail("timed while a graph was being captured"))
    operands = [t.cuda() for t in Case("unseen", (211,), 3, 5, 7, 11, 13).operands(torch.float32)]
    torch.mm(operands[0], operands[0].t())  # the library sets itself up before the capture
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y = kron_linear(*operands, backend="torch")
    graph.replay()
    assert y.isfinite().all()


@pytest.mark.gpu
@pytest.mark.parametrize("path", PATHS)
def test_training_step_on_a_gpu_allocates_neither_the_weight_nor_its_gradient(path: str) -> None:
    """Of what the step allocates beside its results, nothing is as large as ``W``, and 32 MiB hold it at any time."""
    case = Case("suite_size", (1024,), 4, 16, 16, 256, 256)
    # Without a bias, whose gradient torch sums by way of 32 MiB.
    leaves = [t.cuda().requires_grad_() for t in case.operands(torch.float32)[:3]]
    dy = torch.randn(1024, case.out_features, device="cuda")

    def step() -> list[torch.Tensor]:
        y = kron_linear(*leaves, path=path)
        return [y, *torch.autograd.grad(y, leaves, dy)]

    step()
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.memory._record_memory_history(context=None, stacks="python")
    torch.cuda.reset_peak_memory_stats()
    try:
        results = step()
        torch.cuda.synchronize()
        (trace,) = [events for events in torch.cuda.memory._snapshot()["device_traces"] if events]
    finally:
        torch.cuda.memory._record_memory_history(enabled=None)
    largest = max(event["size"] for event in trace if event["action"] == "alloc")
    assert 0 < largest < case.out_features * case.in_features * 4
    results_bytes = sum(t.numel() * t.itemsize for t in results)
    assert torch.cuda.max_memory_allocated() - before - results_bytes <= 32 << 20
