"""What a comparison refuses before anything is trained."""

import pytest

from tests.weit.compare.miniature import Here
from tests.weit.tasks.test_classification import write_fashion_mnist
from weit.compare import CompareConfig, compare


@pytest.mark.parametrize(
    ("argument", "config", "message"),
    [
        ("bank", {"model": "resnet", "targets": ["8x1"]}, "bank must be of the targets' model, resnet"),
        (
            "source",
            {"data": "fashion-mnist", "rivals": ["tleg"]},
            "source must be made for this task, with img_size=28",
        ),
    ],
)
def test_what_is_given_must_be_of_this_task(tmp_path, prepared, argument, config, message):
    if config.get("data") == "fashion-mnist":
        write_fashion_mnist(tmp_path)
        config = {**config, "root": tmp_path}
    pool = Here(tmp_path)
    settings = {"targets": ["16x1"], "rivals": [], **config, argument: prepared / argument}
    with pytest.raises(ValueError, match=message):
        compare(CompareConfig(out=tmp_path / "out", **settings), pool)
    assert not pool.ran


def test_a_target_that_cannot_be_built_is_refused_before_anything_is_trained(tmp_path):
    pool = Here(tmp_path)
    with pytest.raises(ValueError, match="head_dim must divide width"):
        compare(CompareConfig(out=tmp_path, targets=["16x1", "30x1"]), pool)
    assert not pool.ran


def test_a_target_with_layers_that_the_bank_has_no_templates_for_is_refused_before_anything_is_trained(tmp_path):
    pytest.importorskip("transformers")
    pool = Here(tmp_path)
    sizes = {"size": "width=8,depth=1,stages=2", "source_size": "8x1", "small_size": "8x1", "smaller": []}
    with pytest.raises(ValueError, match=r"roles of the bank's, which lacks 'stage\d_\w+' of width=8,depth=1,stages=4"):
        compare(CompareConfig(out=tmp_path, model="resnet", targets=["width=8,depth=1,stages=4"], **sizes), pool)
    assert not pool.ran


OTHER_HEADS = "width=16,depth=1,head_dim=8"


@pytest.mark.parametrize(
    "sizes",
    [
        {"targets": ["16x1", OTHER_HEADS]},
        {"targets": ["16x1"], "size": "32x2", "smaller": [OTHER_HEADS]},
        {"targets": [OTHER_HEADS], "bank": "bank", "size": "width=32,depth=2,head_dim=8", "smaller": []},
    ],
)
def test_other_attention_heads_than_the_banks_are_refused_before_anything_is_trained(tmp_path, prepared, sizes):
    pool = Here(tmp_path)
    given = {"bank": prepared / "bank"} if "bank" in sizes else {}
    with pytest.raises(ValueError, match=rf"one size, got \[16\] in the bank and \[8\] in {OTHER_HEADS}"):
        compare(CompareConfig(out=tmp_path, **{**sizes, **given}), pool)
    assert not pool.ran
