"""Predictions beside what the real thing has and keeps."""

import pytest
import torch

import weit
from weit.by_name import build
from weit.predict import predict, saved_bytes
from weit.pretrain import PretrainConfig
from weit.tasks import load_task

SIZES = [{"width": 64, "depth": 3}, {"width": 32, "depth": 2}]
CONFIG = PretrainConfig(steps=10, batch_size=8, full_share=0.5)


@pytest.fixture(scope="module")
def task():
    return load_task("digits")


@pytest.fixture(scope="module")
def predicted(task):
    full, small = (task.arguments("vit", size) for size in SIZES)
    return predict("vit", full, [small], CONFIG)


def test_numbers_that_learn_are_those_of_the_model(task, predicted):
    model = build(task, "vit", SIZES[0], 0)
    assert predicted.dense_parameters == sum(p.numel() for p in model.parameters())
    bank = weit.kronify(model, CONFIG.spec)
    assert predicted.parameters == sum(p.numel() for p in model.parameters())
    assert predicted.templates == bank.num_parameters()
    optimizer = torch.optim.AdamW(model.parameters())
    model(task.test.tensors[0][:2]).sum().backward()
    optimizer.step()
    moments = sum(t.numel() for state in optimizer.state.values() for t in state.values() if t.dim())
    assert predicted.state_bytes == 4 * (2 * predicted.parameters + moments)


def test_what_an_item_keeps_is_what_a_batch_keeps(task, predicted):
    model = build(task, "vit", SIZES[0], 0)
    weit.kronify(model, CONFIG.spec)
    images = task.test.tensors[0]
    few, many = (saved_bytes(model, lambda n=n: model(images[:n])) for n in (4, 12))
    assert predicted.saved_bytes == pytest.approx((many - few) / 8, rel=0.1)


def test_work_is_a_mean_over_the_sizes(task, predicted):
    full, small = (predict("vit", task.arguments("vit", size), [], CONFIG).flops for size in SIZES)
    assert predicted.flops == pytest.approx((full + small) / 2)
    assert predicted.hours(1e9, 2) == pytest.approx(10 * predicted.flops / 2e9 / 3600)


def test_memory_of_a_process(predicted):
    alone = predicted.peak_bytes(1, CONFIG)
    assert alone == predicted.state_bytes + 8 * predicted.saved_bytes
    assert predicted.peak_bytes(2, CONFIG) == predicted.state_bytes + 4 * predicted.saved_bytes
    sharded = PretrainConfig(batch_size=8, accumulate=2, sharding="fsdp", mixed_precision="bf16")
    assert predicted.peak_bytes(2, sharded) == predicted.state_bytes / 2 + 2 * predicted.saved_bytes / 2


def test_a_size_that_is_no_part_is_refused(task):
    with pytest.raises(ValueError, match="must be a part of model"):
        predict("vit", task.arguments("vit", SIZES[1]), [task.arguments("vit", SIZES[0])], CONFIG)
