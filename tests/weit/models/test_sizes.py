import pytest

from weit.models.sizes import at_other_size, parse_size, training_flops, usual_smaller
from weit.tasks import load_task


def test_sizes_in_words():
    assert parse_size("64x6") == {"width": 64, "depth": 6}
    assert parse_size("embed_dim=192, depth=6") == {"embed_dim": 192, "depth": 6}
    assert parse_size("layers=2-2-3,width=8") == {"layers": [2, 2, 3], "width": 8}


@pytest.mark.parametrize("text", ["", "64", "64x", "axb", "64x6x2", "width=", "width=a", "width=2-"])
def test_other_words_are_refused(text):
    with pytest.raises(ValueError, match=r"a size must look like 64x6 .*, got "):
        parse_size(text)


@pytest.mark.parametrize(
    ("size", "smaller"),
    [("64x6", [(48, 6), (32, 6), (64, 3), (48, 4), (32, 3)]), ("64x3", [(32, 3)]), ("16x9", []),
     ("width=48,depth=6,heads=4", [(32, 6), (48, 4), (32, 3)]), ("embed_dim=64,depth=6", []), ("width=64,depth=2-2", []),
     ("width=64,depth=6,head_dim=32", [(32, 6), (64, 3), (32, 3)]), ("width=48,depth=4,blocks=2-2", [(32, 3)])],
)  # fmt: skip
def test_usual_smaller_sizes_are_parts_of_the_size(size, smaller):
    size = parse_size(size)
    found = [parse_size(text) for text in usual_smaller(size)]
    assert found == [{**size, "width": width, "depth": depth} for width, depth in smaller]


def test_heads_that_are_counted_stay_of_one_size():
    known = {"embed_dim": 64, "depth": 6, "num_heads": 4}
    assert at_other_size(known, {}) == known
    assert at_other_size(known, {"embed_dim": 32}) == {"embed_dim": 32, "depth": 6, "num_heads": 2}
    assert at_other_size(known, {"embed_dim": 32, "num_heads": 4})["num_heads"] == 4
    assert at_other_size({"hidden_size": 32, "num_attention_heads": 2}, {"hidden_size": 48})["num_attention_heads"] == 3
    assert at_other_size({"embed_dim": 64}, {"embed_dim": 32, "depth": 3}) == {"embed_dim": 32, "depth": 3}


def test_arguments_follow_the_images():
    task = load_task("digits")
    assert task.arguments("vit", {"width": 32}) == {
        "img_size": 8, "in_chans": 1, "num_classes": 10, "patch_size": 2, "width": 32,
    }  # fmt: skip
    assert "patch_size" not in task.arguments("timm:resnet18", {})


def test_flops_are_those_of_the_matrix_products():
    width, depth, tokens = 32, 3, 16
    linear = depth * (4 * width**2 + 2 * width * 4 * width) * tokens + 10 * width
    attention = depth * 2 * tokens**2 * width
    embedding = 4 * width * tokens
    # Forward once and backward twice, two operations a multiply-add; the image itself needs no gradient.
    expected = 2 * (3 * (linear + attention) + 2 * embedding)
    assert training_flops("vit", {"img_size": 8, "in_chans": 1, "width": width, "depth": depth}) == expected


def test_a_model_for_larger_images_is_one_error():
    pytest.importorskip("timm")
    with pytest.raises(ValueError, match=r"model timm:convnext_atto with img_size=8.* takes no item of the data: "):
        training_flops("timm:convnext_atto", {"img_size": 8, "in_chans": 1, "num_classes": 10, "patch_size": 16})
