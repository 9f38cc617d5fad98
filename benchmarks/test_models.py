"""Pre-training steps of whole models, on a template bank beside dense: images a second."""

from __future__ import annotations

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

from benchmarks import models
from benchmarks.duel import interleave, synchronised
from benchmarks.options import Options
from benchmarks.record import Record

# Model, batch on a CPU, batch on a GPU.
MODELS = (
    ("timm:deit_small_patch16_224", 4, 256),
    ("timm:deit_base_patch16_224", 2, 128),
    ("timm:resnet50", 4, 256),
)


@pytest.mark.parametrize(("name", "cpu_batch", "gpu_batch"), MODELS, ids=[name.split(":")[1] for name, _, _ in MODELS])
def test_models(
    benchmark: BenchmarkFixture, name: str, cpu_batch: int, gpu_batch: int, options: Options, record: Record
) -> None:
    title = name.split(":")[1]
    who = {"suite": "models", "shape": title, "phase": "step", "contender": "kronify"}
    if reason := models.why_not(name):
        record.skip(who, reason)
    batch = 1 if options.quick else cpu_batch if options.cpu else gpu_batch
    images = torch.randn(batch, 3, 224, 224, device=options.device, dtype=options.dtype)
    dense, kron = (models.build(name, bank, options.device, options.dtype) for bank in (None, models.BANK))
    if benchmark.fullname not in record.visits:
        models.check(kron, images)
    steps = [synchronised(models.training_step(model, images), options.device) for model in (kron, dense)]
    benchmark.group = f"models: {title}"
    for step in steps:
        step()  # first calls pay for what later ones keep
    timings = interleave(benchmark, steps[0], steps[1], options, record)
    benchmark.extra_info.update(
        **who,
        **timings,
        batch=batch,
        parameters=models.numbers(kron),
        dense_parameters=models.numbers(dense),
    )
