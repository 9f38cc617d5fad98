"""The Triton synthesiser alone, and the panel path that it serves, against the float64 reference."""

from collections.abc import Iterator

import pytest
import torch

from tests.weit_kernels.cases import (
    CASES,
    DTYPES,
    LAYOUTS,
    Case,
    assert_as_good_as_dense,
    reference_linear,
    relative_error,
)
from weit_kernels import reference
from weit_kernels.paths import panel as plain_panel
from weit_kernels.paths import synth as plain_synth
from weit_kernels.paths.convolution import ConvArgs

pytest.importorskip("triton", reason="Triton is not installed")

from tests.weit_kernels.triton.direct import DEVICE, operator, poisoned
from weit_kernels.triton import panel, synth

HALF_AND_SINGLE = {name: dtype for name, dtype in DTYPES.items() if name != "fp64"}
# Several tiles on every axis, several steps over the templates, and a ragged end on each.
MANY_TILES = Case("many_tiles", (37,), 37, 9, 8, 13, 22, cut_out=5, cut_in=9)
FEW = [case for case in CASES if case.name in ("ragged_both", "scalar_templates", "column_templates", "no_rows")]


@pytest.fixture(autouse=True)
def poisoned_memory() -> Iterator[None]:
    with poisoned():
        yield


def factors(case: Case, dtype: torch.dtype, kernel: tuple[int, ...]) -> tuple[torch.Tensor, torch.Tensor]:
    """``T (N, p, q, *kernel)`` and ``S (N, m, n)`` with transposed strides."""
    generator = torch.Generator().manual_seed(0)
    T = torch.randn(case.N, case.q, case.p, *kernel, generator=generator).to(dtype).transpose(1, 2)
    S = torch.randn(case.N, case.n, case.m, generator=generator).to(dtype).transpose(1, 2)
    return T.to(DEVICE), S.to(DEVICE)


def check_synthesis(case: Case, dtype: torch.dtype, layout: str, kernel: tuple[int, ...], scratch: int) -> None:
    T, S = factors(case, dtype, kernel)
    sizes = {"out_features": case.out_features, "in_features": case.in_features, "layout": layout}
    exact_T, exact_S = T.double().requires_grad_(), S.double().requires_grad_()
    exact = reference.kron_weight(exact_T, exact_S, **sizes)
    eps = torch.finfo(dtype).eps

    weight = synth.weight(T, S, case.out_features, case.in_features, layout, scratch)
    assert weight.shape == exact.shape
    assert weight.dtype == dtype
    assert relative_error(weight, exact.detach()) <= eps  # one rounding of a float32 sum

    dweight = torch.randn(exact.shape, generator=torch.Generator().manual_seed(1)).to(dtype).to(DEVICE)
    truths = torch.autograd.grad(exact, (exact_T, exact_S), dweight.double())
    for want in ((True, True), (True, False), (False, True)):
        grads = [torch.ones(f.shape, device=DEVICE) if w else None for f, w in zip((T, S), want, strict=True)]
        synth.add_gradients(dweight, T, S, *grads, layout, scratch)
        for grad, truth in zip(grads, truths, strict=True):
            if grad is not None:
                assert relative_error(grad - 1, truth) < 1e-5  # products of 16-bit numbers are exact in float32
        written = synth.gradients(dweight, T, S, list(want), layout, scratch)
        for grad, truth, factor, wanted in zip(written, truths, (T, S), want, strict=True):
            assert (grad is not None) == wanted
            if grad is not None:
                assert grad.shape == factor.shape
                assert grad.dtype == dtype
                assert grad.is_contiguous()
                assert relative_error(grad, truth) < eps + 1e-5


@pytest.mark.triton_all
@pytest.mark.parametrize("kernel", [(), (2, 3)], ids=["linear", "conv"])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", HALF_AND_SINGLE.values(), ids=HALF_AND_SINGLE.keys())
@pytest.mark.parametrize("case", [*CASES, MANY_TILES], ids=lambda case: case.name)
def test_synthesis(case: Case, dtype: torch.dtype, layout: str, kernel: tuple[int, ...]) -> None:
    check_synthesis(case, dtype, layout, kernel, 1 << 20)


@pytest.mark.parametrize("scratch", [1500, 1 << 20])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("dtype", "kernel"), [(torch.bfloat16, ()), (torch.float32, (3,))], ids=["bf16", "fp32_conv"])
def test_synthesis_in_chunks(dtype: torch.dtype, kernel: tuple[int, ...], layout: str, scratch: int) -> None:
    """However little scratch there is, the gradients are whole."""
    check_synthesis(Case("chunks", (), 18, 5, 11, 9, 17, cut_out=4, cut_in=3), dtype, layout, kernel, scratch)


def test_gradients_are_the_same_in_every_run() -> None:
    T, S = factors(MANY_TILES, torch.float32, ())
    dweight = torch.randn(MANY_TILES.out_features, MANY_TILES.in_features).to(DEVICE)
    runs = []
    for _ in range(2):
        grads = [torch.zeros(f.shape, device=DEVICE) for f in (T, S)]
        synth.add_gradients(dweight, T, S, *grads, "block", 1 << 20)
        runs.append(grads)
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))


def test_sums_over_chunks_are_rounded_once() -> None:
    case = Case("chunks", (), 18, 5, 11, 9, 17, cut_out=4, cut_in=3)
    T, S = factors(case, torch.bfloat16, ())
    dweight = torch.randn(case.out_features, case.in_features).to(T)
    sums = [torch.zeros(f.shape, device=DEVICE) for f in (T, S)]
    synth.add_gradients(dweight, T, S, *sums, "block", 1500)
    written = synth.gradients(dweight, T, S, [True, True], "block", 1500)
    for grad, total in zip(written, sums, strict=True):
        assert torch.equal(grad, total.to(torch.bfloat16))


def check_panel(case: Case, dtype: torch.dtype, layout: str) -> None:
    operands = [t.to(DEVICE) for t in case.operands(dtype)]
    ours = operator(panel, case.out_features, layout)
    assert_as_good_as_dense(ours, reference_linear(case, layout), operands, slack=1.5)


@pytest.mark.triton_all
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", HALF_AND_SINGLE.values(), ids=HALF_AND_SINGLE.keys())
@pytest.mark.parametrize("case", [*CASES, MANY_TILES], ids=lambda case: case.name)
def test_panel_matches_the_reference(case: Case, dtype: torch.dtype, layout: str) -> None:
    check_panel(case, dtype, layout)


@pytest.mark.parametrize("dtype", HALF_AND_SINGLE.values(), ids=HALF_AND_SINGLE.keys())
@pytest.mark.parametrize("case", FEW, ids=lambda case: case.name)
def test_panel_matches_the_reference_few(case: Case, dtype: torch.dtype) -> None:
    check_panel(case, dtype, "block")


@pytest.mark.parametrize("most", [700, 6000])
def test_panel_in_parts(most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Panels of some scaler rows, and of some template rows of one."""
    monkeypatch.setattr(plain_panel, "WORKSPACE_BYTES", most)
    monkeypatch.setattr(plain_panel, "CHUNK_BYTES", most // 8)
    case = Case("parts", (6,), 3, 4, 3, 5, 6, cut_out=2, cut_in=1)
    check_panel(case, torch.float32, "block")


@pytest.mark.parametrize(("rows", "in_order", "mebibytes"), [(2048, True, 24), (2048, False, 16), (8192, True, 2)])
def test_partial_sums_take_what_a_panels_gradient_leaves(rows: int, in_order: bool, mebibytes: int) -> None:
    """Of 32 MiB, of which a copy in order takes its share too, but never less than plain torch takes for a chunk."""
    dweight = torch.empty(rows, 1024) if in_order else torch.empty(1024, rows).t()
    assert plain_panel._scratch(dweight, synth) == mebibytes << 20
    assert plain_panel._scratch(dweight, plain_synth) == 2 << 20


def check_conv(dims: int, dtype: torch.dtype, layout: str, groups: int, settings: dict[str, int]) -> None:
    N, m, n, p, q = 3, 4, 2, 5, 6
    out, inn = m * p - 2, n * q - 1
    generator = torch.Generator().manual_seed(dims)
    shapes = [(2, groups * inn, *(6, 5, 4)[:dims]), (N, p, q, *(3,) * dims), (N, m, n), (out,)]
    operands = [torch.randn(*shape, generator=generator).div(3**index).to(dtype) for index, shape in enumerate(shapes)]
    axes = {name: (settings[name],) * dims for name in ("stride", "padding", "dilation")}
    ours = operator(panel, out, conv=ConvArgs(**axes, groups=groups, layout=layout))

    def dense(x, T, S, b):
        return reference.kron_conv(x, T, S, b, groups=groups, out_channels=out, layout=layout, **settings)

    assert_as_good_as_dense(ours, dense, [t.to(DEVICE) for t in operands], slack=1.5)


CONVS = {
    "plain": dict(stride=1, padding=0, dilation=1),
    "strided": dict(stride=2, padding=1, dilation=1),
    "dilated": dict(stride=1, padding=2, dilation=2),
}


@pytest.mark.triton_all
@pytest.mark.parametrize("setting", CONVS.values(), ids=CONVS.keys())
@pytest.mark.parametrize(("layout", "groups"), [("block", 1), ("block", 2), ("interleaved", 2)])
@pytest.mark.parametrize("dtype", HALF_AND_SINGLE.values(), ids=HALF_AND_SINGLE.keys())
@pytest.mark.parametrize("dims", [1, 2, 3])
def test_convolutions(dims: int, dtype: torch.dtype, layout: str, groups: int, setting: dict[str, int]) -> None:
    """Paths see the interleaved layout where the convolution is grouped; else the operator reorders channels."""
    check_conv(dims, dtype, layout, groups, setting)


@pytest.mark.parametrize(
    ("dims", "dtype", "layout", "groups"),
    [(1, torch.float32, "block", 1), (2, torch.bfloat16, "block", 1), (2, torch.float32, "interleaved", 2)],
)
def test_convolutions_few(dims: int, dtype: torch.dtype, layout: str, groups: int) -> None:
    check_conv(dims, dtype, layout, groups, CONVS["strided"])
