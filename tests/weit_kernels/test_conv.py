"""``kron_conv1d/2d/3d`` against the float64 reference, every path, layout and dtype, and torch's own arguments."""

import pytest
import torch
import torch.nn.functional as F

from tests.weit_kernels.cases import DTYPES, LAYOUTS, PATHS, assert_as_good_as_dense, relative_error
from weit_kernels import kron_conv1d, kron_conv2d, kron_conv3d, kron_weight, reference
from weit_kernels.paths import blocks, panel

CONVS = {1: kron_conv1d, 2: kron_conv2d, 3: kron_conv3d}
SETTINGS = {
    "plain": {},
    "strided": {"stride": 2, "padding": 1},
    "dilated": {"dilation": 2, "padding": 2},
    "per_axis": {"stride": (2, 1), "padding": (0, 1), "dilation": (1, 2)},
}


def operands(dims: int, dtype: torch.dtype, *, kernel: int = 3, groups: int = 1, cut: int = 0) -> list[torch.Tensor]:
    N, m, n, p, q = 3, 4, 2, 5, 6
    out, inn = m * p - 2 * cut, n * q - cut
    g = torch.Generator().manual_seed(dims)
    shapes = [(2, groups * inn, *(7, 6, 5)[:dims]), (N, p, q, *(kernel,) * dims), (N, m, n), (out,)]
    scales = [1.0, (n * q * kernel**dims) ** -0.5, N**-0.5, 1.0]
    return [
        (s * torch.randn(*shape, generator=g, dtype=torch.float64)).to(dtype)
        for s, shape in zip(scales, shapes, strict=True)
    ]


def dense(out: int, layout: str, **settings):
    def function(x, T, S, b):
        return reference.kron_conv(x, T, S, b, out_channels=out, layout=layout, **settings)

    return function


@pytest.fixture(params=["shipped", "as_large"])
def panel_kind(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Small weights are made whole; here they are also made as large ones are."""
    if request.param == "as_large":
        monkeypatch.setattr(panel, "SMALL_BYTES", 0)
    return request.param


@pytest.mark.parametrize("path", [*PATHS, "auto"])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES.keys())
@pytest.mark.parametrize("cut", [0, 1], ids=["even", "ragged"])
@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.usefixtures("panel_kind")
def test_conv2d_matches_the_reference(setting: str, cut: int, dtype: torch.dtype, layout: str, path: str) -> None:
    args = operands(2, dtype, cut=cut)
    out, settings = args[3].numel(), SETTINGS[setting]

    def ours(*a):
        return kron_conv2d(*a, **settings, out_channels=out, layout=layout, path=path)

    assert_as_good_as_dense(ours, dense(out, layout, **settings), args, slack=3.0)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dims", [1, 3])
@pytest.mark.parametrize("kernel", [1, 2])
def test_other_dimensions_and_small_blocks(
    dims: int, kernel: int, layout: str, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(blocks, "CPU_BLOCK_BYTES", 512)
    monkeypatch.setattr(panel, "SMALL_BYTES", 0)
    monkeypatch.setattr(panel, "WORKSPACE_BYTES", 1400)
    monkeypatch.setattr(panel, "CHUNK_BYTES", 300)
    args = operands(dims, torch.float64, kernel=kernel, cut=1)
    out = args[3].numel()

    def ours(*a):
        return CONVS[dims](*a, padding=1, stride=2, out_channels=out, layout=layout, path=path)

    assert_as_good_as_dense(ours, dense(out, layout, padding=1, stride=2), args, slack=3.0)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("cut", [0, 1], ids=["even", "ragged"])
@pytest.mark.parametrize("path", ["auto", "panel"])
@pytest.mark.usefixtures("panel_kind")
def test_groups(layout: str, cut: int, path: str) -> None:
    args = operands(2, torch.float64, groups=2, cut=cut)
    out = args[3].numel()

    def ours(*a):
        return kron_conv2d(*a, padding=1, groups=2, out_channels=out, layout=layout, path=path)

    assert_as_good_as_dense(ours, dense(out, layout, padding=1, groups=2), args)


@pytest.mark.parametrize("path", ["templates_first", "scalers_first"])
def test_groups_have_the_panel_path_only(path: str) -> None:
    args = operands(2, torch.float64, groups=2)
    with pytest.raises(RuntimeError, match=r"groups=2.*panel on torch"):
        kron_conv2d(*args, groups=2, path=path)


@pytest.mark.parametrize("kernel", [2, 3, 4])
@pytest.mark.parametrize("padding", ["same", "valid"])
@pytest.mark.parametrize("dims", [1, 2, 3])
def test_named_padding(dims: int, padding: str, kernel: int) -> None:
    x, T, S, b = operands(dims, torch.float64, kernel=kernel)
    y = CONVS[dims](x, T, S, b, padding=padding, dilation=1)
    truth = (F.conv1d, F.conv2d, F.conv3d)[dims - 1](x, kron_weight(T, S), b, padding=padding)
    assert y.shape == truth.shape
    assert relative_error(y, truth) < 1e-14


def test_unbatched_and_channels_last_inputs() -> None:
    x, T, S, b = operands(2, torch.float64)
    truth = F.conv2d(x, kron_weight(T, S), b)
    assert relative_error(kron_conv2d(x[0], T, S, b), truth[0]) < 1e-14
    assert relative_error(kron_conv2d(x.to(memory_format=torch.channels_last), T, S, b), truth) < 1e-14


@pytest.mark.parametrize("path", [*PATHS, "auto"])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dims", [2, 3])
def test_pointwise_channels_last_is_the_linear_form(dims: int, layout: str, path: str) -> None:
    """No copy of the input, and the memory format that F.conv2d returns, for the output and the gradient."""
    x, T, S, b = operands(dims, torch.float64, kernel=1, cut=1)
    form = (torch.channels_last, torch.channels_last_3d)[dims - 2]

    def ours(x, T, S, b):
        return CONVS[dims](x, T, S, b, out_channels=len(b), layout=layout, path=path)

    assert_as_good_as_dense(ours, dense(len(b), layout), [x.to(memory_format=form), T, S, b], slack=3.0)
    last = x.to(memory_format=form).requires_grad_()
    with torch.profiler.profile() as profile:
        y = ours(last, T, S, b)
    names = {event.name for event in profile.events()}
    assert "weit::kron_linear" in names
    assert "weit::kron_conv" not in names
    assert y.is_contiguous(memory_format=form)
    if dims == 2:  # F.conv3d keeps the format in some dtypes only
        weight = kron_weight(T, S, out_features=len(b), in_features=x.shape[1], layout=layout)
        assert y.stride() == F.conv2d(last, weight, b).stride()
    y.square().sum().backward()
    assert last.grad.is_contiguous(memory_format=form)


@pytest.mark.parametrize("backend", ["torch", "auto"])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(
    ("dims", "kernel", "settings", "path"),
    [
        (*form, path)
        for form in [(2, 1, {"stride": 2}), (2, 3, {"padding": 1}), (3, 2, {}), (2, 3, {"padding": 1, "groups": 2})]
        for path in ([*PATHS, "auto"] if "groups" not in form[2] else ["panel", "auto"])  # groups need the panel
    ],
)
def test_channels_last_stays_so(
    dims: int, kernel: int, settings: dict[str, int], layout: str, path: str, backend: str
) -> None:
    """The output and the input's gradient come in the input's memory format, as the library's do."""
    x, T, S, b = operands(dims, torch.float64, kernel=kernel, groups=settings.get("groups", 1))
    form = (torch.channels_last, torch.channels_last_3d)[dims - 2]

    def ours(x, T, S, b):
        return CONVS[dims](x, T, S, b, out_channels=len(b), layout=layout, path=path, backend=backend, **settings)

    last = x.to(memory_format=form)
    for grad in (False, True):  # then from what the first call settled
        y = ours(last.requires_grad_(grad), T, S, b)
        assert y.is_contiguous(memory_format=form)
        assert relative_error(y, dense(len(b), layout, **settings)(x, T, S, b)) < 1e-14
    (dx,) = torch.autograd.grad(y.square().sum(), last)
    # Interleaved channels are put in order before the operator; the way back is torch's, which leaves dx contiguous.
    assert dx.is_contiguous(memory_format=form) or (layout == "interleaved" and dx.is_contiguous())
    assert_as_good_as_dense(ours, dense(len(b), layout, **settings), [last.detach(), T, S, b], slack=3.0)
    torch.library.opcheck(
        torch.ops.weit.kron_conv.default,
        (last.detach(), T, S, b, len(b), *_settings(dims, settings), "block", False, path, backend),
    )


def _settings(dims: int, settings: dict[str, int]) -> tuple[list[int] | int, ...]:
    """Stride, padding and dilation by axis, and groups, as the operator takes them."""
    axes = ([settings.get(name, value)] * dims for name, value in (("stride", 1), ("padding", 0), ("dilation", 1)))
    return (*axes, settings.get("groups", 1))


@pytest.mark.parametrize("path", PATHS)
def test_empty_batch(path: str) -> None:
    x, T, S, b = (t.requires_grad_() for t in operands(2, torch.float64))
    y = kron_conv2d(x[:0], T, S, b, padding=1, path=path)
    assert y.shape == (0, 20, 7, 6)
    y.sum().backward()
    assert torch.equal(T.grad, torch.zeros_like(T))
    assert torch.equal(S.grad, torch.zeros_like(S))


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES.keys())
@pytest.mark.parametrize("path", PATHS)
def test_pointwise_products_do_not_hold_a_weight_for_each_image(
    path: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each image's share of the weight's gradient is as large as the weight; so is a copy that the library may make."""
    most, B, N, m, p = 1 << 15, 64, 2, 4, 16
    monkeypatch.setattr(blocks, "CPU_BLOCK_BYTES", most)
    monkeypatch.setattr(panel, "SMALL_BYTES", 0)
    x, T, S = torch.randn(B, m * p, 1, 1), torch.randn(N, p, p, 1, 1) / p, torch.randn(N, m, m)
    args = [t.to(dtype) for t in (x, T, S)]

    def ours(*a):
        return kron_conv2d(*a, path=path, backend="torch")

    assert_as_good_as_dense(ours, lambda *a: dense(m * p, "block")(*a, None), args, slack=3.0)
    leaves = [t.requires_grad_() for t in args]
    with torch.profiler.profile(profile_memory=True) as profile:
        y = ours(*leaves)
        y.backward(torch.ones_like(y))
    assert 0 < max(abs(event.cpu_memory_usage) for event in profile.events()) <= 2 * most
