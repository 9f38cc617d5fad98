"""The planner: what it counts must be what the paths do; what it refuses must say why."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

import weit_kernels
from tests.weit_kernels.cases import PATHS, needs_extension
from weit_kernels import cpp, kron_conv2d, kron_linear, plan
from weit_kernels.choice import conv_request
from weit_kernels.estimates import Request, cost, work
from weit_kernels.paths import PATHS as PATH_MODULES
from weit_kernels.paths import blocks, panel
from weit_kernels.paths.convolution import ConvArgs, run_conv, run_conv_backward
from weit_kernels.plan import choose
from weit_kernels.shapes import KronShape

SHAPES = {
    "wide": (64, (4, 12, 3), (16, 20)),
    "tall": (40, (3, 2, 9), (24, 8)),
    "few_rows": (1, (8, 8, 8), (32, 32)),
    "many_templates": (50, (30, 4, 4), (8, 8)),
}


@pytest.mark.parametrize("needs_grad", [False, True])
@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("name", SHAPES)
def test_flops_are_those_of_the_products_that_run(name: str, path: str, needs_grad: bool) -> None:
    """Counted below the operator, product by product; the operator's own formula must say the same."""
    M, (N, m, n), (p, q) = SHAPES[name]
    x, T, S = torch.randn(M, n * q), torch.randn(N, p, q), torch.randn(N, m, n)
    below, above = FlopCounterMode(display=False), FlopCounterMode(display=False)
    with below:
        dy = PATH_MODULES[path].linear(x, T, S, None, m * p)
        if needs_grad:
            PATH_MODULES[path].linear_backward(dy, x, T, S, [True] * 3)
    with above:
        y = kron_linear(*(t.requires_grad_(needs_grad) for t in (x, T, S)), path=path)
        if needs_grad:
            y.sum().backward()
    expected = plan(M, (N, m, n), (p, q), torch.float32, "cpu", needs_grad=needs_grad, path=path)
    assert expected.flops == below.get_total_flops() == above.get_total_flops()
    assert expected.dense_flops == (6 if needs_grad else 2) * M * m * p * n * q


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(("kernel", "stride", "padding"), [(1, 1, 0), (1, 2, 0), (3, 1, 1), (3, 2, 0), (8, 8, 0)])
def test_flops_of_convolutions_are_those_of_the_products_that_run(
    kernel: int, stride: int, padding: int, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Products of ``S`` with the input have as many columns as it has pixels, those of templates as the output has."""
    monkeypatch.setattr(panel, "SMALL_BYTES", 0)
    N, m, n, p, q = 2, 4, 3, 5, 6
    x, T, S = torch.randn(2, n * q, 16, 16), torch.randn(N, p, q, kernel, kernel), torch.randn(N, m, n)
    args = ConvArgs((stride, stride), (padding, padding), (1, 1))
    request = conv_request(x, T, S, m * p, *vars(args).values(), True, path, "torch")
    with FlopCounterMode(display=False) as forward:
        y = run_conv(PATH_MODULES[path], x, T, S, None, m * p, args)
    with FlopCounterMode(display=False) as backward:
        run_conv_backward(PATH_MODULES[path], y, x, T, S, [True] * 3, args)
    assert cost(request, path, "forward").flops == forward.get_total_flops()
    assert cost(request, path, "backward").flops == backward.get_total_flops()
    assert choose(request).flops == forward.get_total_flops() + backward.get_total_flops()


@pytest.mark.parametrize(("scalers", "path"), [((4, 32, 4), "templates_first"), ((4, 4, 32), "scalers_first")])
def test_picks_the_order_that_needs_fewer_operations(scalers: tuple[int, int, int], path: str) -> None:
    for needs_grad in (False, True):
        chosen = plan(4096, scalers, (128, 128), torch.float32, "cpu", needs_grad=needs_grad)
        assert chosen.path == path
        assert chosen.flops < chosen.dense_flops / 2


@needs_extension
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_compiled_kernels_only_where_they_were_measured_and_win(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    few_operations, many_operations = (4096, (4, 16, 16), (128, 128)), (4096, (64, 8, 8), (64, 64))
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX2")
    assert plan(*few_operations, dtype, "cpu").backend == "cpp"
    if dtype == torch.float32:  # the library multiplies bfloat16 so slowly there that operations do not decide
        assert plan(*many_operations, dtype, "cpu").backend == "torch"
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "NEW")
    chosen = plan(*few_operations, dtype, "cpu")
    assert chosen.backend == "torch"
    assert "not considered: not timed beside plain torch on a CPU with NEW" in chosen.explain()
    assert plan(*few_operations, dtype, "cpu", backend="cpp").backend == "cpp"


@needs_extension
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_compiled_convolutions_where_they_were_measured_and_win(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    few_operations, wasted_panels = (784, (2, 8, 8), (2, 64, 64, 3, 3)), (784, (8, 4, 4), (8, 17, 17, 3, 3))
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX2")
    timed = dtype != torch.float64
    assert plan(*few_operations, dtype, "cpu").backend == ("cpp" if timed else "torch")
    assert plan(*few_operations, dtype, "cpu", backend="cpp").backend == "cpp"
    if dtype == torch.float32:
        assert plan(*wasted_panels, dtype, "cpu").backend == "torch"
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "NEW")
    assert plan(*few_operations, dtype, "cpu").backend == "torch"


@pytest.mark.parametrize(
    ("path", "phase", "expected"),
    [
        ("templates_first", "forward", [(9, 32), (2, 32)]),  # inner axis and columns of Z and y
        ("scalers_first", "forward", [(2, 32), (9, 32)]),  # of U and y
        ("templates_first", "backward", [(9, 32), (3, 32), (5, 32), (20, 9), (32, 2)]),  # of Z, V, dx, dT, dS
    ],
)
def test_zeros_that_fill_panels_are_counted(path: str, phase: str, expected: list[tuple[int, int]]) -> None:
    shape = KronShape(1, 3, 2, 5, 9, 15, 18)
    request = Request(shape, 10, torch.float32, torch.device("cpu"), True)
    plain, filled = cost(request, path, phase), work(request, path, phase, 32)
    assert len(plain.products) == len(filled.products) == len(expected)
    assert [(product.inner, product.cols) for product in filled.products] == expected
    assert work(request, path, phase, 0) == plain


@needs_extension
def test_dilated_windows_are_left_to_plain_torch_unless_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX2")
    shape = KronShape(2, 8, 8, 64, 64, 512, 512, kernel=(3, 3))
    request = Request(shape, 784, torch.float32, torch.device("cpu"), True)
    assert choose(request).backend == "cpp"
    dilated = replace(request, conv=replace(ConvArgs.plain(2), dilation=(1, 2)))
    assert choose(dilated).backend == "torch"
    assert choose(replace(dilated, backend="cpp")).backend == "cpp"


@needs_extension
def test_a_dtype_that_autocast_chose_and_the_backend_lacks_is_named() -> None:
    x, T, S = torch.randn(2, 16, 5, 5), torch.randn(2, 8, 8, 3, 3), torch.randn(2, 2, 2)
    with torch.autocast("cpu", torch.float16), pytest.raises(RuntimeError, match=r"float16"):
        kron_conv2d(x, T, S, backend="cpp")


def test_picks_the_panel_where_no_order_saves_operations() -> None:
    chosen = plan(4096, (64, 8, 8), (64, 64), torch.float32, "cpu")
    assert chosen.path == "panel"
    assert chosen.flops > chosen.dense_flops


def test_auto_runs_what_the_plan_says() -> None:
    ran = []
    modules = [(path, "torch", module) for path, module in PATH_MODULES.items()]
    modules += [(path, "cpp", module) for path, module in cpp.PATHS.items()]
    for path, backend, module in modules:
        original, name = module.linear, (path, backend)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(module, "linear", lambda *a, name=name, f=original: ran.append(name) or f(*a))
            for M, (N, m, n), (p, q) in SHAPES.values():
                kron_linear(torch.randn(M, n * q), torch.randn(N, p, q), torch.randn(N, m, n))
    plans = [plan(M, s, t, torch.float32, "cpu", needs_grad=False) for M, s, t in SHAPES.values()]
    assert sorted(ran) == sorted((chosen.path, chosen.backend) for chosen in plans)


@pytest.mark.parametrize("rows", [1, 100, 100_000])
@pytest.mark.parametrize("templates", [(256, 256), (4, 256), (256, 4)])
@pytest.mark.parametrize("scalers", [(4, 16, 16), (8, 64, 16), (2, 3, 200)])
def test_workspace_is_bounded_by_32_mib(rows: int, scalers: tuple[int, int, int], templates: tuple[int, int]) -> None:
    for path in PATHS:
        chosen = plan(rows, scalers, templates, torch.float32, "cuda", path=path)
        assert 0 < chosen.workspace_bytes <= 32 << 20


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("path", "m", "n", "p", "q"), [("templates_first", 128, 4, 4, 8), ("scalers_first", 4, 128, 8, 4)]
)
def test_blocks_hold_what_narrow_templates_take(
    path: str, m: int, n: int, p: int, q: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A row's share of ``dS`` is larger than its intermediate; the planned workspace is what a block takes of both."""
    monkeypatch.setattr(blocks, "CPU_BLOCK_BYTES", 1 << 16)
    rows, N = 16, 2
    T, S = torch.randn(N, p, q).to(dtype), torch.randn(N, m, n).to(dtype)
    x, dy = torch.randn(rows, n * q).to(dtype), torch.randn(rows, m * p).to(dtype)
    planned = plan(rows, S.shape, T.shape, dtype, "cpu", path=path, backend="torch").workspace_bytes
    for need in ([True] * 3, [True, True, False]):
        with torch.profiler.profile(profile_memory=True) as profile:
            PATH_MODULES[path].linear_backward(dy, x, T, S, need)
        largest = max(abs(event.cpu_memory_usage) for event in profile.events())
        assert 0 < largest <= planned <= 1 << 16


@pytest.mark.parametrize(("kernel", "stride"), [(1, 1), (3, 2)])
@pytest.mark.parametrize("path", ["templates_first", "scalers_first"])
def test_blocks_of_convolutions_are_images_and_large_ones_are_not_kept(
    path: str, kernel: int, stride: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An image's intermediate is planned as the whole that it is, and goes with the call where it exceeds the bound."""
    N, m, n, p, q = 2, 4, 3, 5, 6
    x, T, S = torch.randn(3, n * q, 16, 16), torch.randn(N, p, q, kernel, kernel), torch.randn(N, m, n)
    args = ConvArgs((stride, stride), (0, 0), (1, 1))
    request = conv_request(x, T, S, m * p, *vars(args).values(), False, path, "torch")
    pixels = args.output_size((16, 16), (kernel, kernel)).numel() if path == "templates_first" else 256
    image = 4 * pixels * N * (n * p if path == "templates_first" else m * q)

    def kept() -> int:
        """In a thread of its own, where nothing is kept yet."""
        run_conv_backward(
            PATH_MODULES[path], run_conv(PATH_MODULES[path], x, T, S, None, m * p, args), x, T, S, [True] * 3, args
        )
        return sum(memory.nbytes for memory in blocks._KEPT.__dict__.values())

    monkeypatch.setattr(blocks, "CPU_BLOCK_BYTES", 1)
    assert cost(request, path, "forward").workspace >= image
    for most in (image - 1, image):
        monkeypatch.setattr(blocks, "WORKSPACE_BYTES", most)
        with ThreadPoolExecutor(1) as thread:
            assert thread.submit(kept).result() == (image if image <= most else 0)


def test_the_panel_of_a_grouped_convolution_is_planned_as_the_whole_weight() -> None:
    shape = KronShape(2, 16, 16, 64, 64, 1024, 1024, kernel=(3, 3))
    request = Request(shape, 100, torch.float32, torch.device("cpu"), False)
    whole = 4 * 9 * 1024 * 1024
    assert cost(request, "panel", "forward").workspace <= 32 << 20 < whole
    grouped = replace(request, conv=replace(ConvArgs.plain(2), groups=2))
    assert whole < cost(grouped, "panel", "forward").workspace <= whole + (4 << 20)


@pytest.mark.parametrize("most", [1, 700, 3_000, 10_000_000])
def test_panels_cover_the_weight_once_and_stay_small(most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(panel, "WORKSPACE_BYTES", most)
    monkeypatch.setattr(panel, "CHUNK_BYTES", most // 8)
    T, S, out = torch.randn(2, 5, 6, dtype=torch.float64), torch.randn(2, 4, 3, dtype=torch.float64), 18
    seen = []
    for part in panel._panels(T, S, out):
        weight = part.weight(T, S, 17)
        assert weight.shape == (part.out.stop - part.out.start, 17)
        assert weight.numel() * weight.itemsize < most or weight.shape[0] == 1
        seen.append(weight.clone())
    assert torch.allclose(torch.cat(seen), weit_kernels.kron_weight(T, S, out_features=out, in_features=17))


@pytest.mark.parametrize("kernel", [(), (3, 3)])
def test_small_weights_are_made_whole(kernel: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    T, S = torch.randn(2, 8, 8, *kernel), torch.randn(2, 4, 4)
    looped: list[bool] = []
    honest = panel.plain.weight
    monkeypatch.setattr(panel.plain, "weight", lambda *args: looped.append(True) or honest(*args))
    for smaller in (0, 1):
        monkeypatch.setattr(panel, "SMALL_BYTES", 4 * S[0].numel() * T[0].numel() - smaller)
        (kron_conv2d if kernel else kron_linear)(torch.randn(1, 32, *kernel), T, S, path="panel", backend="torch")
        assert len(looped) == smaller


def test_template_shape_with_and_without_count() -> None:
    for template_shape in ((8, 16), (4, 8, 16)):
        assert plan(10, (4, 3, 3), template_shape, torch.float32, "cpu").dense_flops == 6 * 10 * 24 * 48
    conv = plan(10, (4, 3, 3), (4, 8, 16, 3, 3), torch.float32, "cpu", needs_grad=False)
    assert conv.dense_flops == 9 * plan(10, (4, 3, 3), (8, 16), torch.float32, "cpu", needs_grad=False).dense_flops


def test_explain_shows_every_path_and_the_choice() -> None:
    chosen = plan(512, (4, 8, 8), (96, 96), torch.float32, "cpu")
    table = chosen.explain()
    for path in ("templates_first", "scalers_first", "panel", "on_the_fly"):
        assert path in table
    (line,) = [line for line in table.splitlines() if "<- chosen" in line]
    assert line.startswith(chosen.path)
    assert "cannot run: weight tiles made inside the product need a fused kernel" in table


@pytest.mark.parametrize(
    ("args", "kwargs", "error", "message"),
    [
        (
            (-1, (4, 3, 3), (8, 8), torch.float32, "cpu"),
            {},
            ValueError,
            "M must be an int, 0 or more, got -1",
        ),
        ((1.5, (4, 3, 3), (8, 8), torch.float32, "cpu"), {}, ValueError, "M must be an int"),
        ((1, (4, 3), (8, 8), torch.float32, "cpu"), {}, ValueError, "scalers_shape must be"),
        ((1, (4, 3, 3), (8, 8), torch.float32, None), {}, ValueError, "device must be one that torch knows, got None"),
        ((1, (4, 3, 0), (8, 8), torch.float32, "cpu"), {}, ValueError, "scalers_shape must be"),
        ((1, (4, 3, 3.0), (8, 8), torch.float32, "cpu"), {}, TypeError, "scalers_shape must be a sequence of ints"),
        ((1, 4, (8, 8), torch.float32, "cpu"), {}, TypeError, "scalers_shape must be a sequence of ints"),
        ((1, (4, 3, 3), "ab", torch.float32, "cpu"), {}, TypeError, "template_shape must be a sequence of ints"),
        ((1, (4, 3, 3), (8, 8), torch.float32, "gpu9"), {}, ValueError, "device must be one that torch knows"),
        ((1, (4, 3, 3), (5, 8, 8), torch.float32, "cpu"), {}, ValueError, "template_shape must be .*N=4"),
        ((1, (4, 3, 3), (8,), torch.float32, "cpu"), {}, ValueError, "template_shape must be"),
        ((1, (4, 3, 3), (8, 8), torch.int64, "cpu"), {}, ValueError, "dtype must be"),
        ((1, (4, 3, 3), (8, 8), torch.float32, "cpu"), {"path": "best"}, ValueError, "path must be one of"),
        (
            (1, (4, 3, 3), (8, 8), torch.float32, "cpu"),
            {"backend": "jax"},
            ValueError,
            "backend must be one of",
        ),
        (
            (1, (4, 3, 3), (8, 8), torch.float32, "cpu"),
            {"backend": "cuda"},
            RuntimeError,
            "'cuda' cannot run: the CUDA kernels need a GPU, the tensors are on cpu",
        ),
        (
            (1, (4, 3, 3), (8, 8), torch.float32, "cpu"),
            {"path": "on_the_fly", "backend": "torch"},
            RuntimeError,
            "fused kernel.*can run: templates_first",
        ),
    ],
)
def test_bad_arguments(args: tuple, kwargs: dict, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        plan(*args, **kwargs)


def test_an_extension_for_another_torch_is_not_used() -> None:
    assert cpp._unfit("2.13", "2.13.0+cpu") == ""
    assert "older sources" in cpp._unfit("2.13", "2.13.0+cpu", whole=False)
    assert cpp._unfit("2.1", "2.13.0") == "the compiled extension is for torch 2.1, this is 2.13: build it again"


def test_without_the_extension_nothing_is_read_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpp, "_reason", "not built")
    monkeypatch.delattr(cpp, "_C", raising=False)
    monkeypatch.setattr(torch, "are_deterministic_algorithms_enabled", lambda: True)
    assert plan(77, (2, 3, 4), (5, 6), torch.float32, "cpu").backend == "torch"
