"""The defining property: agreement with the teacher rises."""

import pytest
import torch

from tests.weit import toys
from tests.weit.rivals.models import snapshot, unchanged
from weit.engine import TrainConfig, train
from weit.rivals.distillation import initialize_like


@pytest.fixture(scope="module")
def teacher():
    torch.manual_seed(0)
    model = toys.vit(32, 2)
    train(model, toys.images(), TrainConfig(steps=40, batch_size=32, lr=4e-3), progress=False)
    return model


def fresh():
    torch.manual_seed(1)
    return toys.vit(16, 3)


def agreement(model, teacher):
    inputs, _ = toys.images(200, seed=9)
    with torch.no_grad():
        return float((model(inputs).argmax(-1) == teacher(inputs).argmax(-1)).float().mean())


def test_agreement_rises_and_the_teacher_stays(teacher):
    before = snapshot(teacher)
    target = fresh()
    begun = agreement(target, teacher)
    assert initialize_like(target, teacher, data=toys.images(), steps=40, lr=4e-3, batch_size=32) is target
    assert agreement(target, teacher) > begun + 0.3
    assert unchanged(teacher, before)
    assert all(parameter.requires_grad for parameter in teacher.parameters())


def test_it_is_the_answers_that_teach(teacher):
    """Labels that say nothing leave only the soft targets to learn from."""
    inputs, labels = toys.images()
    data = inputs, torch.zeros_like(labels)
    with_teacher = initialize_like(fresh(), teacher, data=data, steps=40, lr=4e-3, batch_size=32, alpha=10.0)
    without = initialize_like(fresh(), teacher, data=data, steps=40, lr=4e-3, batch_size=32, alpha=0.0)
    assert agreement(with_teacher, teacher) > agreement(without, teacher) + 0.3


def test_no_steps_leave_the_fresh_model(teacher):
    target = fresh()
    assert unchanged(initialize_like(target, teacher, steps=0), snapshot(fresh()))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"source": None}, "source must be a trained model, got None"),
        ({"data": None}, "data must be given to distil on, got None"),
        ({"source": toys.vit(classes=5)}, r"teacher must answer like the model, \(8, 4\), got \(8, 5\)"),
        ({"steps": -1}, "steps must be an int from 0, got -1"),
        ({"alpha": -1.0}, "alpha must be from 0, got -1.0"),
        ({"temperature": 0.0}, "temperature must be positive, got 0.0"),
    ],
)
def test_what_does_not_fit_is_refused(teacher, arguments, message):
    arguments = {"source": teacher, "data": toys.images(), "steps": 2, "batch_size": 8, **arguments}
    target = fresh()
    with pytest.raises(ValueError, match=message):
        initialize_like(target, arguments.pop("source"), **arguments)
    assert unchanged(target, snapshot(fresh()))
