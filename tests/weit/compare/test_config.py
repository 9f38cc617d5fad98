from pathlib import Path

import pytest

from weit.compare import CompareConfig
from weit.rivals import RIVALS

FOLDERS = {"out": Path("out")}


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
        ({"lrs": []}, "lrs must be a list that is not empty, got"),
        ({"targets": []}, "targets must be a list that is not empty, got"),
        ({"lrs": [1e-3, 1e-3]}, "lrs must be a list without repetitions"),
        ({"lrs": [1e-3, 1.0000001e-3]}, "lrs must be a list without repetitions"),  # one job's name
        ({"targets": ["16x1", "depth=1,width=16"]}, "targets must be a list without repetitions"),
        ({"lrs": [0.0]}, "lrs must be positive"),
        ({"lrs": [float("nan")]}, "lrs must be positive"),
        ({"fit_lrs": [float("inf")]}, "fit_lrs must be positive"),
        ({"targets": ["64"]}, "a size must look like 64x6"),
        ({"rivals": ["magic"]}, r"rivals must be all, or of scratch_longer, weight_selection, .*, got \['magic'\]"),
        ({"rivals": ["tleg", "tleg"]}, "rivals must be a list without repetitions"),
        ({"rivals": ["scratch"]}, "rivals must be all, or of"),
        ({"family": "cooking"}, "family must be one of classification.*, got 'cooking'"),
        ({"source_size": "big"}, "a size must look like 64x6"),
        ({"ligo_lrs": []}, "ligo_lrs must be a list that is not empty"),
        ({"pretrain_lr": 0.0}, "pretrain_lr must be positive"),
        ({"full_share": 1.5}, "full_share must be a share from 0 to 1, got 1.5"),
        ({"templates": 0}, "templates must be at least 1"),
        ({"mixed_precision": "bf8"}, "mixed_precision must be one of no, bf16, fp16, got 'bf8'"),
    ],
)
def test_fields_out_of_range_are_named(fields, message):
    with pytest.raises(ValueError, match=message):
        CompareConfig(**{**FOLDERS, **fields})


def test_the_usual_comparison_is_with_scratch_and_selection():
    assert CompareConfig(out=Path("out")).starts == ["scratch", "scratch_longer", "weight_selection", "weit"]


def test_all_rivals_by_one_word():
    assert set(CompareConfig(out=Path("out"), rivals=["all"]).starts) == {"weit", "scratch_longer", *RIVALS}
