"""Images from a Hugging Face data set on disk."""

import sys

import numpy as np
import pytest
import torch

from tests.weit.tasks.test_images import COLOURS, TINY, parts, picture
from weit.cli import main
from weit.engine.data import Batches
from weit.tasks import load_task
from weit.tasks.image_folder import UnreadableImage

datasets = pytest.importorskip("datasets")


@pytest.fixture(autouse=True)
def quiet():
    datasets.disable_progress_bars()


def rows(images=12, start=0, labels=None, names=tuple(COLOURS), column="image", **more):
    """A split of so many images of each colour, with the columns of the wrong kind in front."""
    named = [(name, number) for name in COLOURS for number in range(start, start + images)]
    if labels is None:
        labels = [list(COLOURS).index(name) for name, _ in named]
    features = {
        "width": datasets.Value("int64"),
        column: datasets.Image(),
        "fine_label": datasets.ClassLabel(names=list(names)),
    }
    content = {
        "width": [24] * len(named),
        column: [picture(*each) for each in named],
        "fine_label": labels,
    }
    return datasets.Dataset.from_dict(content | more, datasets.Features(features))


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved")
    datasets.DatasetDict(train=rows(), test=rows(2, 100), unsupervised=rows(1, 200)).save_to_disk(folder)
    return folder


def saved(root, **options):
    return load_task("hf-dataset", root, image_size=16, **options)


def test_splits_are_kept_and_a_missing_one_is_taken_from_training(root):
    task = saved(root)
    assert [len(part) for part in parts(task)] == [30, 6, 6]
    assert task.validation.source is task.train.dataset.source
    assert not set(task.validation.items) & set(task.train.dataset.items)
    assert [part.items.tolist() for part in parts(task)] == [part.items.tolist() for part in parts(saved(root))]
    assert task.model_args == {"img_size": 16, "in_chans": 3, "num_classes": 3}


def test_one_split_alone_is_divided(tmp_path):
    rows().save_to_disk(tmp_path)
    task = saved(tmp_path)
    assert [len(part) for part in parts(task)] == [24, 6, 6]
    image, label = task.test[0]
    assert (type(image), image.dtype, image.shape, type(label)) == (torch.Tensor, torch.float32, (3, 16, 16), int)
    assert all(int(image.mean((1, 2)).argmax()) == 2 - label for image, label in (task.test[i] for i in range(6)))


def test_a_format_that_was_saved_changes_nothing(root, tmp_path):
    rows().with_format("torch").save_to_disk(tmp_path)
    one, other = saved(tmp_path), saved(root)
    assert torch.equal(one.validation[0][0], saved(tmp_path).validation[0][0])
    assert one.train.dataset.source[3][1] == other.train.dataset.source[3][1]


def test_workers_change_nothing(root):
    alone, helped = (Batches(saved(root, workers=count).train, 8).stream(0, 4) for count in (0, 2))
    for one, other in zip(alone, helped, strict=True):
        assert torch.equal(one[0], other[0])
        assert torch.equal(one[1], other[1])


def test_training_from_the_command_line(root, tmp_path, capsys):
    flags = ["--root", root, "--image-size", 16, "--size", "16x1", "--out", tmp_path / "run", *TINY]
    assert main(["train", "--data", "hf-dataset", *map(str, flags)]) == 0
    assert "test accuracy" in capsys.readouterr().out


def unlabelled():
    return datasets.DatasetDict(train=rows(), test=rows(2, 100, labels=[-1] * 6))


def renamed():
    return datasets.DatasetDict(train=rows(), test=rows(2, 100, names=["blue", "green", "white"]))


def reordered():
    return datasets.DatasetDict(train=rows(), test=rows(2, 100, names=["red", "green", "blue"]))


def two_images():
    again = rows().select_columns("image").rename_column("image", "again")
    return datasets.concatenate_datasets([rows(), again], axis=1)


BROKEN = {
    "no train": (lambda: datasets.DatasetDict(test=rows()), "must have a split train, but has test"),
    "no image": (lambda: rows().remove_columns("image"), "must have one column of type Image, but has width: Value"),
    "no label": (lambda: rows().remove_columns("fine_label"), "must have one column of type ClassLabel, but has width"),
    "two images": (two_images, "must have one column of type Image, but has width"),
    "no rows": (lambda: datasets.DatasetDict(train=rows(), test=rows(0)), "holds no whole data set"),
    "unlabelled": (unlabelled, "/test must have a label from 0 to 2 in every row, got labels from -1 to -1"),
    "other classes": (renamed, "same classes in every split, but only test has white"),
    "other order": (reordered, "same order in every split, but test has not"),
    "few": (lambda: rows(2), "too few images to be split, 2; it needs 6"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_what_is_wrong_is_said_before_training(name, tmp_path):
    make, message = BROKEN[name]
    make().save_to_disk(tmp_path)
    with pytest.raises(ValueError, match=message) as caught:
        saved(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_folder_that_holds_none(tmp_path, root):
    with pytest.raises(FileNotFoundError, match=r"root is not a folder: .*none"):
        saved(tmp_path / "none")
    with pytest.raises(ValueError, match="holds no whole data set as"):
        saved(tmp_path)
    rows().save_to_disk(tmp_path / "damaged")
    for file in (tmp_path / "damaged").glob("*.arrow"):
        file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(ValueError, match="damaged holds no whole data set as"):
        saved(tmp_path / "damaged")


@pytest.mark.parametrize(
    "stored", [None, {"bytes": b"no image", "path": None}, {"bytes": None, "path": "https://x.org/y.png"}]
)
def test_a_damaged_image_is_named(tmp_path, stored):
    good = rows().cast_column("image", datasets.Image(decode=False))
    content = good[:]
    content["image"][20] = stored
    damaged = datasets.Dataset.from_dict(content, good.features).cast_column("image", datasets.Image())
    if stored is None or stored["path"] is None:
        damaged.save_to_disk(tmp_path)
        source = saved(tmp_path).train.dataset.source
    else:  # which saving would fetch
        from weit.tasks.saved_dataset import SavedImages

        source = SavedImages(damaged, str(tmp_path))
    with pytest.raises(UnreadableImage, match=f"^image 20 of {tmp_path} cannot be read as an image: "):
        source[np.int64(20)]


def test_a_missing_library_is_named(root, monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(RuntimeError, match=r"data hf-dataset needs datasets: pip install \.\[images\]"):
        saved(root)
