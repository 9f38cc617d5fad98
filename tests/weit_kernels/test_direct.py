"""Calls that skip checks and dispatcher give the same results, and those that may not skip them do not."""

from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from tests.weit_kernels.cases import CASES, LAYOUTS, PATHS, RAGGED, Case, reference_linear, relative_error
from weit_kernels import direct, kron_conv1d, kron_conv2d, kron_linear, reference


@pytest.fixture(autouse=True)
def _nothing_seen_before(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(direct, "_SEEN", {})


@pytest.fixture
def warm(monkeypatch: pytest.MonkeyPatch) -> list[torch.Tensor]:
    """Operands whose sizes are known, and a function that must not be used for them."""
    operands = RAGGED.operands(torch.float32)
    kron_linear(*operands, out_features=RAGGED.out_features)
    (key,) = direct._SEEN

    def forbidden(*_: object) -> torch.Tensor:
        raise AssertionError("this call must go through the dispatcher")

    monkeypatch.setitem(direct._SEEN, key, forbidden)
    with pytest.raises(AssertionError, match="must go through"):  # the plain call is the one that is short
        kron_linear(*operands, out_features=RAGGED.out_features)
    return operands


def ours(*operands: torch.Tensor) -> torch.Tensor:
    return kron_linear(*operands, out_features=RAGGED.out_features)


@pytest.mark.parametrize("path", ["auto", *PATHS])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_the_second_call_equals_the_first(case: Case, layout: str, path: str) -> None:
    first, second = case.operands(torch.float64, seed=1), case.operands(torch.float64, seed=2)
    strided = [t.transpose(-1, -2).contiguous().transpose(-1, -2) if t.dim() > 1 else t for t in second]
    without = [*first[:3], None]

    def call(*operands: torch.Tensor | None) -> torch.Tensor:
        return kron_linear(*operands, out_features=case.out_features, layout=layout, path=path)

    for operands in (first, second, strided, without, without):
        expected = reference_linear(case, layout)(*operands)
        got = call(*operands)
        assert got.shape == expected.shape
        assert relative_error(got, expected) < 1e-13
    assert len(direct._SEEN) == 2


def test_gradients(warm: list[torch.Tensor]) -> None:
    for i in range(4):
        leaves = [t.clone().requires_grad_(k == i) for k, t in enumerate(warm)]
        (grad,) = torch.autograd.grad(ours(*leaves).sum(), leaves[i])
        assert grad.shape == leaves[i].shape


def test_counted_operations(warm: list[torch.Tensor]) -> None:
    with FlopCounterMode(display=False) as counter:
        ours(*warm)
    assert counter.get_total_flops() > 0


def test_transforms(warm: list[torch.Tensor]) -> None:
    x, *factors = warm
    batched = torch.vmap(lambda row: ours(row, *factors))(x[:, None])
    assert relative_error(batched[:, 0], reference_linear(RAGGED, "block")(*warm)) < 1e-5
    assert torch.func.grad(lambda x: ours(x, *factors).sum())(x).shape == x.shape


def test_forward_mode(warm: list[torch.Tensor]) -> None:
    x, T, S, bias = warm
    with torch.autograd.forward_ad.dual_level():
        y, tangent = torch.autograd.forward_ad.unpack_dual(ours(torch.autograd.forward_ad.make_dual(x, x), T, S, bias))
    assert tangent is not None
    assert relative_error(tangent, y - bias) < 1e-5


def test_a_backward_pass_in_forward_mode_is_refused_not_ignored(warm: list[torch.Tensor]) -> None:
    """Of a forward pass before it: the operator's own derivatives carry no tangents."""
    x, *factors = warm
    y = ours(x.clone().requires_grad_(), *factors)
    with torch.autograd.forward_ad.dual_level(), pytest.raises(NotImplementedError):
        y.backward(torch.autograd.forward_ad.make_dual(torch.ones_like(y), torch.ones_like(y)))


def test_tensors_of_another_kind(warm: list[torch.Tensor]) -> None:
    class Counting(torch.Tensor):
        calls = 0

        @classmethod
        def __torch_function__(cls, function, types, args=(), kwargs=None):
            Counting.calls += 1
            return super().__torch_function__(function, types, args, kwargs or {})

    ours(warm[0].as_subclass(Counting), *warm[1:])
    assert Counting.calls > 0
    meta = [t.to("meta") for t in warm]
    assert ours(*meta).is_meta
    assert ours(*meta).is_meta


def test_a_profiler_sees_the_operator(warm: list[torch.Tensor]) -> None:
    with torch.profiler.profile() as profile:
        ours(*warm)
    assert "weit::kron_linear" in {event.key for event in profile.key_averages()}


@pytest.mark.parametrize("index", range(4))
def test_a_sign_that_is_not_in_memory_yet(warm: list[torch.Tensor], index: int) -> None:
    expected = reference_linear(RAGGED, "block")(*(-t if i == index else t for i, t in enumerate(warm)))
    got = ours(*(torch._neg_view(t) if i == index else t for i, t in enumerate(warm)))
    assert relative_error(got, expected) < 1e-5


def test_settings_that_only_equal_good_ones(warm: list[torch.Tensor]) -> None:
    for wrong in (float(RAGGED.out_features), [RAGGED.out_features]):
        with pytest.raises(TypeError, match="out_features"):
            kron_linear(*warm, out_features=wrong)
    with pytest.raises(ValueError, match="layout"):
        kron_linear(*warm, out_features=RAGGED.out_features, layout=["block"])


def test_bad_input_after_good(warm: list[torch.Tensor]) -> None:
    x, T, S, b = warm
    with pytest.raises(ValueError, match=r"x\.shape"):
        ours(x[:, :-2], T, S, b)
    with pytest.raises(TypeError, match="templates"):
        ours(x, T.double(), S, b)
    with pytest.raises(ValueError, match="out_features"):
        kron_linear(*warm, out_features=RAGGED.m * RAGGED.p + 1)
    with pytest.raises(TypeError, match="x must be a dense tensor"):
        ours(x.to_sparse(), T, S, b)


def test_it_forgets_rather_than_grows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(direct, "_MOST", 4)
    _, T, S, b = RAGGED.operands(torch.float32)
    for rows in range(1, 12):
        ours(torch.randn(rows, RAGGED.in_features), T, S, b)
        assert 0 < len(direct._SEEN) <= 4


CONV = {"stride": (2, 1), "padding": 1, "dilation": (1, 2)}


def conv_operands(*, taps: int = 3, seed: int = 0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    sizes = (2, 10, 9, 8), (3, 5, 4, taps, taps), (3, 2, 3), (10,)
    return [torch.randn(size, generator=generator, dtype=torch.float64) for size in sizes]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("taps", "settings"), [(3, CONV), (3, {"padding": "same"}), (1, {}), (1, {"padding": 1})])
def test_the_second_convolution_equals_the_first(taps: int, settings: dict[str, object], layout: str) -> None:
    given = {**settings, "layout": layout}
    first, second = conv_operands(taps=taps), conv_operands(taps=taps, seed=1)
    for operands in (first, second, [second[0].transpose(2, 3).contiguous().transpose(2, 3), *second[1:]]):
        expected = reference.kron_conv(*operands, **given)
        for x in (operands[0], operands[0].to(memory_format=torch.channels_last)):
            got = kron_conv2d(x, *operands[1:], **given)
            assert got.shape == expected.shape
            assert relative_error(got, expected) < 1e-13
    assert bool(direct._SEEN) == (layout == "block")


def test_a_known_convolution_takes_the_short_way(monkeypatch: pytest.MonkeyPatch) -> None:
    operands = conv_operands()
    kron_conv2d(*operands, **CONV)
    (key,) = direct._SEEN
    monkeypatch.setitem(direct._SEEN, key, lambda *_: "known")
    assert kron_conv2d(*operands, **CONV) == "known"
    x = operands[0].to(memory_format=torch.channels_last)
    assert isinstance(kron_conv2d(x, *operands[1:], **CONV), torch.Tensor)
    assert direct._SEEN[key]() == "known"  # what lies otherwise neither takes it nor writes it anew


@pytest.mark.parametrize("settings", [{"groups": 2}, {"groups": 2, "layout": "interleaved"}])
def test_grouped_convolutions(settings: dict[str, object]) -> None:
    x, T, S, _ = conv_operands()
    x, S = torch.cat([x, x], 1), torch.cat([S, S], 1)
    expected = reference.kron_conv(x, T, S, **settings)
    for _ in range(2):
        assert relative_error(kron_conv2d(x, T, S, **settings), expected) < 1e-13


def test_a_single_image_is_no_batch_of_lines() -> None:
    x, T, S, _ = conv_operands(taps=1)
    expected = reference.kron_conv(x, T, S)[0]
    for _ in range(2):
        assert relative_error(kron_conv2d(x[0], T, S), expected) < 1e-13
        lines = kron_conv1d(x[0].transpose(0, 1), T[..., 0], S)
        assert relative_error(lines, kron_conv2d(x[0].transpose(0, 1)[..., None], T, S)[..., 0]) < 1e-13


def test_what_a_known_convolution_must_not_hide() -> None:
    x, T, S, b = conv_operands()
    expected = kron_conv2d(x, T, S, b, **CONV)
    (key,) = direct._SEEN
    with pytest.raises(TypeError, match="x must be"):
        kron_conv2d(None, T, S, b, **CONV)
    assert relative_error(kron_conv2d(x, T, S, b, **{**CONV, "stride": [2, 1]}), expected) < 1e-13
    with pytest.raises(ValueError, match="padding"):
        kron_conv2d(x, T, S, b, **{**CONV, "padding": True})
    with pytest.raises(ValueError, match="stride"):
        kron_conv2d(x, T, S, b, **{**CONV, "stride": (2, True)})
    assert list(direct._SEEN) == [key]
    (grad,) = torch.autograd.grad(kron_conv2d(x, T.requires_grad_(), S, b, **CONV).sum(), T)
    assert grad.shape == T.shape
