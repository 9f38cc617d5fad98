"""Every contender that can be built here computes the reference, its gradients too; what cannot says why."""

from dataclasses import replace

import pytest
import torch

from benchmarks.contenders import CONTENDERS, DENSE, PEERS
from benchmarks.operands import Operands, WrongResult, check, errors, make_step
from benchmarks.suite import SuiteShape, load, select
from weit_kernels.shapes import KronShape

LINEAR = SuiteShape("deit_b_fc1", "train", KronShape(3, 6, 4, 5, 7, 30, 28), 9)
CONV = SuiteShape(
    "resnet50_l3_3x3", "train", KronShape(2, 2, 3, 4, 5, 8, 15, kernel=(3, 3)), 2 * 5 * 5, batch=2, size=(5, 5)
)
SLOW = {"materialised_compiled"}
NAMES = [
    pytest.param(contender, id=contender.name, marks=[pytest.mark.slow] * (contender.name in SLOW))
    for contender in CONTENDERS
]


@pytest.mark.parametrize("suite", [LINEAR, CONV], ids=["linear", "conv"])
@pytest.mark.parametrize("layout", ["block", "interleaved"])
@pytest.mark.parametrize("contender", NAMES)
def test_every_contender_computes_the_reference(contender, layout: str, suite: SuiteShape) -> None:
    if reason := contender.why_not(suite, "train", torch.float32, "cpu"):
        pytest.skip(reason)
    given = Operands(suite, layout=layout)
    dense_error = max(errors(make_step(DENSE.build(given), given, "train")(), given).values())
    outputs = make_step(contender.build(given), given, "train")()
    assert check(outputs, given, dense_error) < 1e-5
    compared = set(errors(outputs, given))
    factors = set() if contender is DENSE else {"templates", "scalers"}
    assert compared == {"output", "x", "bias"} | factors
    alone = make_step(contender.build(given), given, "forward")()
    assert set(alone) == {"output"}
    assert check(alone, given, dense_error) < 1e-5


def test_names_are_unique() -> None:
    names = [contender.name for contender in CONTENDERS]
    assert len(names) == len(set(names))


def test_a_missing_package_is_the_reason() -> None:
    missing = replace(PEERS[0], package="nosuch", module="nosuch_package")
    assert "nosuch cannot be imported" in missing.why_not(LINEAR, "train", torch.float32, "cpu")


def test_peers_say_that_they_have_no_convolution() -> None:
    for contender in PEERS:
        assert contender.supports(CONV, "train", torch.float32, "cpu")  # whether installed or not


@pytest.mark.parametrize("name", ["output", "x", "templates", "scalers", "bias"])
def test_a_wrong_tensor_is_refused_whichever_it_is(name: str) -> None:
    given = Operands(LINEAR)
    (auto,) = (contender for contender in CONTENDERS if contender.name == "auto")
    outputs = make_step(auto.build(given), given, "train")()
    for wrong in (outputs[name] * 1.001, outputs[name] * float("nan"), outputs[name][:-1]):
        with pytest.raises(WrongResult, match=name):
            check({**outputs, name: wrong}, given, 1e-7)


def test_select_knows_the_suite() -> None:
    assert [s.name for s in select("linear", True, ("square_768", "convnext_pw"))] == ["square_768"]
    assert [s.name for s in select("conv2d", True)] == [s.name for s in load("conv2d", True)]
    with pytest.raises(ValueError, match=r"square_768.*got nosuch"):
        select("linear", True, ("nosuch",))
    for small, whole in zip(select("linear", True, quick=True), load("linear", True), strict=True):
        assert small.shape.N == whole.shape.N
        assert small.shape.out_features == small.shape.m * small.shape.p <= whole.shape.out_features
