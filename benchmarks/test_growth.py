"""How cost grows: of one layer with N and M, of a small ViT's training step with batch, width and depth."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

from benchmarks import models
from benchmarks.contenders import AUTO, CONTENDERS
from benchmarks.contenders.dense import dense_layer
from benchmarks.duel import interleave, synchronised, warms
from benchmarks.operands import Operands, check, errors, make_step
from benchmarks.options import Options
from benchmarks.record import Record
from benchmarks.suite import SuiteShape
from weit_kernels.shapes import KronShape

# 1024 x 1024, of 16 x 16 blocks of 64 x 64, 512 rows; one size varies.
LAYER = SuiteShape("growth", "train", KronShape(8, 16, 16, 64, 64, 1024, 1024), 512)
LAYER_SWEEPS = {"N": (1, 2, 4, 8, 16, 32), "M": (16, 64, 256, 1024, 4096), "layer width": (256, 512, 1024, 2048)}
MODEL = {"img_size": 32, "patch_size": 4, "in_chans": 3, "width": 192, "depth": 4, "head_dim": 32}
BATCH = 8
MODEL_SWEEPS = {"batch": (2, 4, 8, 16), "width": (96, 192, 384), "depth": (1, 2, 4, 8)}


def _cases(sweeps: dict[str, tuple[int, ...]]) -> list[Any]:
    return [
        pytest.param(axis, value, id=f"{axis}={value}".replace(" ", "_"))
        for axis, values in sweeps.items()
        for value in values
    ]


def _layer(axis: str, value: int) -> SuiteShape:
    s = LAYER.shape
    if axis == "M":
        return replace(LAYER, rows=value)
    if axis == "N":
        return replace(LAYER, shape=replace(s, N=value))
    return replace(LAYER, shape=replace(s, p=value // s.m, q=value // s.n, out_features=value, in_features=value))


@pytest.mark.parametrize(("axis", "value"), _cases(LAYER_SWEEPS))
def test_layer(benchmark: BenchmarkFixture, axis: str, value: int, options: Options, record: Record) -> None:
    given = Operands(_layer(axis, value), options.device, options.dtype)
    (auto,) = (contender for contender in CONTENDERS if contender.name == AUTO)
    ours, theirs = (make_step(module, given, "train") for module in (auto.build(given), dense_layer(given)))
    if benchmark.fullname not in record.visits:
        check(ours(), given, max(errors(theirs(), given).values()))
    suite = given.suite
    benchmark.extra_info.update(rows=suite.rows, limit=suite.limit("train"))
    steps = (synchronised(step, options.device) for step in (ours, theirs))
    _time(benchmark, *steps, "one layer", axis, value, options, record, warm=warms(suite, "train"))


@pytest.mark.parametrize(("axis", "value"), _cases(MODEL_SWEEPS))
def test_model(benchmark: BenchmarkFixture, axis: str, value: int, options: Options, record: Record) -> None:
    batch = value if axis == "batch" else BATCH
    sizes = MODEL if axis == "batch" else {**MODEL, axis: value}
    images = torch.randn(batch, 3, 32, 32, device=options.device, dtype=options.dtype)
    kron, dense = (models.build("vit", bank, options.device, options.dtype, **sizes) for bank in (models.BANK, None))
    if benchmark.fullname not in record.visits:
        models.check(kron, images)
    steps = (synchronised(models.training_step(model, images), options.device) for model in (kron, dense))
    _time(benchmark, *steps, "small ViT, a training step", axis, value, options, record)


def _time(
    benchmark: BenchmarkFixture,
    ours: Any,
    theirs: Any,
    what: str,
    axis: str,
    value: int,
    options: Options,
    record: Record,
    warm: bool = False,
) -> None:
    benchmark.group = f"growth of {what} with {axis}"
    theirs(), ours()  # first calls pay for what later ones keep
    timings = interleave(benchmark, ours, theirs, options, record, warm=warm)
    benchmark.extra_info.update(suite="growth", what=what, axis=axis, value=value, **timings)
