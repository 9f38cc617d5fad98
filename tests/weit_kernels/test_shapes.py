"""Bad arguments: each raises the documented error before any kernel runs, and the message names the argument."""

import re

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.weit_kernels.cases import LAYOUTS, PATHS, relative_error
from weit_kernels import kron_conv2d, kron_linear, kron_weight, reference

X, T, S, B = torch.zeros(3, 15), torch.zeros(2, 4, 5), torch.zeros(2, 6, 3), torch.zeros(24)
XC, TC = torch.zeros(3, 15, 6, 6), torch.zeros(2, 4, 5, 3, 3)

BAD_LINEAR = {
    "x is no tensor": ((3.0, T, S), {}, TypeError, "x must be a torch.Tensor, got float"),
    "x is integer": ((X.long(), T, S), {}, TypeError, "x must be float64.*got torch.int64"),
    "x is sparse": (
        (X.to_sparse(), T, S),
        {},
        TypeError,
        "x must be a dense tensor, got one of layout torch.sparse_coo",
    ),
    "x is a scalar": (
        (torch.tensor(1.0), T, S),
        {},
        ValueError,
        r"x must have shape \(\.\.\., in_features\)",
    ),
    "x too narrow": ((X[:, :10], T, S), {}, ValueError, r"x.shape\[-1\] is 10, but n=3 .* cover 11 to 15"),
    "x too wide": ((torch.zeros(3, 16), T, S), {}, ValueError, r"x.shape\[-1\] is 16"),
    "x of another dtype": ((X.double(), T, S), {}, TypeError, "x has dtype torch.float64, but templates has"),
    "x on another device": ((X.to("meta"), T, S), {}, ValueError, "x is on meta, but templates is on cpu"),
    "templates integer": ((X, T.int(), S), {}, TypeError, "templates must be float64.*got torch.int32"),
    "templates complex": ((X, T.cfloat(), S), {}, TypeError, "templates must be .*got torch.complex64"),
    "templates of rank 2": (
        (X, T[0], S),
        {},
        ValueError,
        r"templates must have shape \(N, p, q\), got \(4, 5\)",
    ),
    "scalers of rank 2": ((X, T, S[0]), {}, ValueError, r"scalers must have shape \(N, m, n\), got \(6, 3\)"),
    "scalers of another N": (
        (X, T, torch.zeros(3, 6, 3)),
        {},
        ValueError,
        "scalers hold 3 .* templates hold 2",
    ),
    "empty templates": (
        (X, T[:, :0], S),
        {},
        ValueError,
        r"templates must have no empty axis, got \(2, 0, 5\)",
    ),
    "no template at all": ((X, T[:0], S[:0]), {}, ValueError, "templates must have no empty axis"),
    "scalers of another dtype": ((X, T, S.half()), {}, TypeError, "scalers has dtype torch.float16"),
    "scalers on another device": ((X, T, S.to("meta")), {}, ValueError, "scalers is on meta"),
    "bias of another length": (
        (X, T, S, B[:20]),
        {},
        ValueError,
        r"bias must have shape \(24,\), got \(20,\)",
    ),
    "bias of another dtype": ((X, T, S, B.double()), {}, TypeError, "bias has dtype torch.float64"),
    "bias integer": ((X, T, S, B.long()), {}, TypeError, "bias must be .*got torch.int64"),
    "out_features too small": (
        (X, T, S),
        {"out_features": 20},
        ValueError,
        "out_features is 20.* cover 21 to 24",
    ),
    "out_features too large": ((X, T, S), {"out_features": 25}, ValueError, "out_features is 25"),
    "out_features no int": (
        (X, T, S),
        {"out_features": 24.0},
        TypeError,
        "out_features must be an int, got float",
    ),
    "unknown layout": (
        (X, T, S),
        {"layout": "rows"},
        ValueError,
        "layout must be one of 'block'.*got 'rows'",
    ),
    "unknown path": ((X, T, S), {"path": "fast"}, ValueError, "path must be one of 'auto'.*got 'fast'"),
    "unknown backend": (
        (X, T, S),
        {"backend": "tpu"},
        ValueError,
        "backend must be one of 'auto'.*got 'tpu'",
    ),
    "path without kernels": (
        (X, T, S),
        {"path": "on_the_fly", "backend": "torch"},
        RuntimeError,
        "on_the_fly.*fused kernel.*can run: templates_first",
    ),
    "backend not built": (
        (X, T, S),
        {"backend": "cuda"},
        RuntimeError,
        "backend='cuda' cannot run.*on torch",
    ),
}
BAD_CONV = {
    "templates without kernel": (
        (XC, T, S),
        {},
        ValueError,
        r"templates must have shape \(N, p, q, k0, k1\)",
    ),
    "x of rank 2": ((X, TC, S), {}, ValueError, "x must have 3 or 4 axes"),
    "x integer": ((XC.int(), TC, S), {}, TypeError, "x must be .*got torch.int32"),
    "too few channels": ((XC[:, :10], TC, S), {}, ValueError, "channels of x / groups is 10"),
    "groups do not divide x": ((XC, TC, S), {"groups": 2}, ValueError, "x has 15 channels, which groups=2"),
    "groups zero": ((XC, TC, S), {"groups": 0}, ValueError, "groups must be a positive int, got 0"),
    "stride zero": ((XC, TC, S), {"stride": 0}, ValueError, "stride must be .* none below 1, got 0"),
    "three strides": ((XC, TC, S), {"stride": (1, 1, 1)}, ValueError, r"stride must be .*got \(1, 1, 1\)"),
    "negative padding": ((XC, TC, S), {"padding": -1}, ValueError, "padding must be .* none below 0, got -1"),
    "unknown padding": (
        (XC, TC, S),
        {"padding": "full"},
        ValueError,
        "padding must be one of 'same', 'valid'",
    ),
    "same with stride": (
        (XC, TC, S),
        {"padding": "same", "stride": 2},
        ValueError,
        "padding='same' needs stride 1",
    ),
    "fractional dilation": ((XC, TC, S), {"dilation": 1.5}, (TypeError, ValueError), "dilation must be"),
    "kernel larger than x": (
        (XC[..., :2], TC, S),
        {},
        ValueError,
        "x has 2 positions on spatial axis 1.*kernel of 3",
    ),
    "no pixels": ((XC[..., :0], TC, S), {"padding": 3}, ValueError, "x has no positions on spatial axis 1"),
    "out_channels too large": ((XC, TC, S), {"out_channels": 30}, ValueError, "out_channels is 30"),
}


@pytest.mark.parametrize("name", BAD_LINEAR)
def test_bad_linear_arguments(name: str) -> None:
    args, kwargs, error, message = BAD_LINEAR[name]
    with pytest.raises(error, match=message):
        kron_linear(*args, **kwargs)


@pytest.mark.parametrize("name", BAD_CONV)
def test_bad_conv_arguments(name: str) -> None:
    args, kwargs, error, message = BAD_CONV[name]
    with pytest.raises(error, match=message):
        kron_conv2d(*args, **kwargs)


@pytest.mark.parametrize(
    ("args", "kwargs", "error", "message"),
    [
        ((T, S), {"in_features": 10}, ValueError, "in_features is 10"),
        ((T, S), {"out_features": 30}, ValueError, "out_features is 30"),
        ((T, S), {"layout": "x"}, ValueError, "layout must be"),
        ((T.long(), S), {}, TypeError, "templates must be"),
        ((None, S), {}, TypeError, "templates must be a torch.Tensor, got NoneType"),
        ((T[0], S), {}, ValueError, "templates must have shape"),
    ],
)
def test_bad_weight_arguments(args: tuple, kwargs: dict, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        kron_weight(*args, **kwargs)


sizes = st.integers(1, 6)


@given(
    lead=st.lists(st.integers(0, 3), max_size=3), N=sizes, m=sizes, n=sizes, p=sizes, q=sizes, data=st.data(),
    layout=st.sampled_from(LAYOUTS), path=st.sampled_from(PATHS),
)  # fmt: skip
def test_any_shape_that_fits_works(lead, N, m, n, p, q, data, layout, path) -> None:
    out = data.draw(st.integers((m - 1) * p + 1, m * p))
    inn = data.draw(st.integers((n - 1) * q + 1, n * q))
    x, templates = torch.randn(*lead, inn, dtype=torch.float64), torch.randn(N, p, q, dtype=torch.float64)
    scalers, bias = torch.randn(N, m, n, dtype=torch.float64), torch.randn(out, dtype=torch.float64)
    y = kron_linear(x, templates, scalers, bias, out_features=out, layout=layout, path=path)
    truth = reference.kron_linear(x, templates, scalers, bias, out_features=out, layout=layout)
    assert y.shape == truth.shape
    assert relative_error(y, truth) < 1e-13


@given(shapes=st.lists(st.lists(st.integers(0, 4), max_size=4), min_size=3, max_size=3))
def test_any_shapes_work_or_name_what_is_wrong(shapes) -> None:
    """Whatever three shapes are given: a result like the reference's, or one of the documented errors."""
    x, templates, scalers = (torch.ones(shape) for shape in shapes)
    fits = (
        templates.dim() == scalers.dim() == 3
        and len(templates) == len(scalers)
        and templates.numel() > 0
        and scalers.numel() > 0
        and x.dim() > 0
        and -(-x.shape[-1] // templates.shape[2]) == scalers.shape[2]
    )
    if fits:
        assert torch.equal(kron_linear(x, templates, scalers), reference.kron_linear(x, templates, scalers))
    else:
        with pytest.raises(ValueError, match=re.compile("^(x|templates|scalers)")):
            kron_linear(x, templates, scalers)


def test_numbers_may_be_numpys() -> None:
    x, templates, scalers = torch.randn(2, 16, 5, 5), torch.randn(2, 4, 4, 3, 3), torch.randn(2, 4, 2)
    two, one, out = np.int64(2), np.int32(1), np.int64(14)
    y = kron_conv2d(x, templates, scalers, None, (one, two), one, one, two, out_channels=out)
    assert torch.equal(y, kron_conv2d(x, templates, scalers, None, (1, 2), 1, 1, 2, out_channels=14))
    rows = torch.randn(3, 8)
    numpys = kron_linear(rows, templates[..., 0, 0], scalers, out_features=np.int64(15))
    assert torch.equal(numpys, kron_linear(rows, templates[..., 0, 0], scalers, out_features=15))
