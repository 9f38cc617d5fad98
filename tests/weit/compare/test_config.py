from pathlib import Path

import pytest

from weit.compare import CompareConfig

FOLDERS = {"out": Path("out"), "bank": Path("bank"), "source": Path("source")}


def test_workers_are_the_cores_unless_said():
    assert CompareConfig(**FOLDERS, workers=7).processes == 7
    assert CompareConfig(**FOLDERS).processes >= 1


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"seeds": 0}, "seeds must be at least 1, got 0"),
        ({"steps": -1}, "steps must be at least 1, got -1"),
        ({"evaluate_every": 0}, "evaluate_every must be at least 1, got 0"),
        ({"fit_steps": -1}, "fit_steps must be 0 or more, got -1"),
        ({"lrs": []}, "lrs must be a list without repetitions, not empty, got"),
        ({"lrs": [1e-3, 1e-3]}, "lrs must be a list without repetitions"),
        ({"lrs": [0.0]}, "lrs must be positive"),
        ({"lrs": [float("nan")]}, "lrs must be positive"),
        ({"fit_lr": float("inf")}, "fit_lr must be positive"),
        ({"targets": ["64"]}, "a size must look like 64x6"),
        ({"initializers": ["weit"]}, "initializers must be a list with scratch"),
        (
            {"initializers": ["scratch", "magic"]},
            "initializers must be of scratch, scratch_longer, weight_selection, ligo, bert2bert, mimetic, tleg, "
            "distillation, weit",
        ),
        ({"initializers": ["scratch", "scratch_longer"]}, "initializers must be with weit where scratch_longer is"),
        ({"bank": None}, "bank must be a folder, for weit, got None"),
        ({"source": None}, "source must be a folder, for weight_selection, got None"),
        ({"initializers": ["scratch", "tleg"], "source": None}, "source must be a folder, for tleg, got None"),
        ({"initializers": ["scratch", "ligo"]}, "small must be a folder, for ligo, got None"),
    ],
)
def test_fields_out_of_range_are_named(fields, message):
    with pytest.raises(ValueError, match=message):
        CompareConfig(**{**FOLDERS, **fields})


def test_nothing_is_needed_for_what_is_not_compared():
    assert CompareConfig(out=Path("out"), initializers=["scratch", "mimetic"]).bank is None


def test_the_usual_comparison_is_with_scratch_and_selection():
    assert CompareConfig(**FOLDERS).initializers == ["scratch", "scratch_longer", "weight_selection", "weit"]
