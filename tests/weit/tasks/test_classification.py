import gzip
import struct
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from weit.tasks import load_task
from weit.tasks.classification import find_fashion_mnist


@pytest.fixture(scope="module")
def digits():
    return load_task("digits")


def write_fashion_mnist(folder, train=60, test=20):
    """Small files of the same form; every image is filled with its number."""
    for prefix, count in (("train", train), ("t10k", test)):
        images = np.repeat(np.arange(count, dtype=np.uint8), 28 * 28).reshape(count, 28, 28)
        labels = (np.arange(count) % 10).astype(np.uint8)
        for kind, array in (("images-idx3", images), ("labels-idx1", labels)):
            header = struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape)
            (folder / f"{prefix}-{kind}-ubyte.gz").write_bytes(gzip.compress(header + array.tobytes()))


def rows(dataset):
    images, labels = dataset.tensors
    return {(*image.flatten().tolist(), int(label)) for image, label in zip(images, labels, strict=True)}


def test_digits_are_split_without_overlap(digits):
    from sklearn.datasets import load_digits

    splits = [digits.train, digits.validation, digits.test]
    assert [len(split) for split in splits] == [1047, 300, 450]
    distinct = len({(*image.flatten(), label) for image, label in zip(*load_digits(return_X_y=True), strict=True)})
    assert len(rows(digits.train) | rows(digits.validation) | rows(digits.test)) == distinct
    assert not rows(digits.train) & rows(digits.test)
    assert not rows(digits.train) & rows(digits.validation)


def test_every_split_has_every_label_in_its_share(digits):
    whole = sum(split.tensors[1].bincount() for split in (digits.train, digits.validation, digits.test))
    for split in (digits.train, digits.validation, digits.test):
        expected = whole / 1797 * len(split)
        assert (split.tensors[1].bincount() - expected).abs().max() <= 1


def test_splits_are_shuffled_and_always_the_same(digits):
    again = load_task("digits")
    for one, other in zip(digits.test.tensors, again.test.tensors, strict=True):
        assert torch.equal(one, other)
    assert digits.train.tensors[1][:200].bincount(minlength=10).min() >= 5


def test_images_are_scaled_by_the_training_split(digits):
    images = digits.train.tensors[0]
    assert images.dtype == torch.float32
    assert images.shape[1:] == (1, 8, 8)
    assert float(images.double().mean()) == pytest.approx(0, abs=1e-6)
    assert float(images.double().std(correction=0)) == pytest.approx(1, abs=1e-6)
    assert float(digits.test.tensors[0].double().mean()) != pytest.approx(0, abs=1e-6)


class Bright(nn.Module):
    """Says 1 for bright images, else 0, and counts how often it was asked."""

    def __init__(self):
        super().__init__()
        self.offset = nn.Parameter(torch.zeros(()))
        self.modes = []

    def forward(self, images):
        self.modes.append(self.training)
        bright = images.mean((1, 2, 3)) + self.offset
        return torch.stack([-bright, bright], 1)


def test_evaluate_counts_in_batches(digits):
    values = torch.tensor([1.0, -1.0, 2.0, -2.0, 3.0])
    dataset = torch.utils.data.TensorDataset(values[:, None, None, None], torch.tensor([1, 0, 0, 0, 1]))
    model = Bright()
    found = replace(digits, test=dataset).evaluate(model, "test", batch_size=2)
    loss = torch.nn.functional.cross_entropy(torch.stack([-values, values], 1), dataset.tensors[1])
    assert found == {"accuracy": pytest.approx(4 / 5), "loss": pytest.approx(float(loss))}
    assert model.modes == [False] * 3
    assert model.training


class Items(torch.utils.data.Dataset):
    """Items that have to be fetched one by one."""

    def __init__(self, tensors):
        self.tensors = tensors

    def __len__(self):
        return len(self.tensors[0])

    def __getitem__(self, index):
        return self.tensors[0][index], int(self.tensors[1][index])


def test_a_data_set_in_memory_and_one_on_disk_score_alike(digits):
    images, labels = digits.test.tensors
    here, fetched = (replace(digits, test=kind) for kind in (
        torch.utils.data.TensorDataset(images, labels % 2), Items((images, labels % 2))
    ))  # fmt: skip
    assert fetched.evaluate(Bright(), "test") == pytest.approx(here.evaluate(Bright(), "test"))


def test_quick_is_a_fair_share(digits):
    values = torch.ones(3000)
    values[2000:] = -1
    dataset = torch.utils.data.TensorDataset(values[:, None, None, None], torch.ones(3000, dtype=torch.int64))
    task = replace(digits, validation=dataset)
    assert task.evaluate(Bright(), "validation", quick=True)["accuracy"] == 1
    assert task.evaluate(Bright(), "validation")["accuracy"] == pytest.approx(2 / 3)


def test_an_unknown_split_is_refused(digits):
    with pytest.raises(ValueError, match="split must be one of validation, test, got 'train'"):
        digits.evaluate(Bright(), "train")


def test_fashion_mnist_from_a_folder(tmp_path):
    write_fashion_mnist(tmp_path)
    task = load_task("fashion-mnist", tmp_path)
    assert [len(split) for split in (task.train, task.validation, task.test)] == [50, 10, 20]
    assert task.model_args == {"img_size": 28, "in_chans": 1, "num_classes": 10}
    assert task.validation.tensors[1].bincount().tolist() == [1] * 10
    images, labels = task.test.tensors
    order = images[:, 0, 0, 0].argsort()  # filled with their numbers, so brightness is the order in the file
    assert labels[order].tolist() == [i % 10 for i in range(20)]


def test_an_unknown_family_is_refused():
    with pytest.raises(ValueError, match=r"family must be one of classification.*, got 'cooking'"):
        load_task(family="cooking")


def test_unknown_data_is_refused():
    with pytest.raises(ValueError, match=r'data must be "digits" or "fashion-mnist", or .* got .mnist'):
        load_task("mnist")


def test_missing_files_say_what_to_do(tmp_path):
    with pytest.raises(FileNotFoundError, match="install Debian's dataset-fashion-mnist, or give"):
        find_fashion_mnist(tmp_path)
    write_fashion_mnist(tmp_path)
    (tmp_path / "t10k-labels-idx1-ubyte.gz").unlink()
    with pytest.raises(FileNotFoundError, match="t10k-labels-idx1-ubyte"):
        load_task("fashion-mnist", tmp_path)


@pytest.mark.parametrize(
    ("name", "source", "message"),
    [
        (
            "train-labels-idx1-ubyte.gz",
            "t10k-labels-idx1-ubyte.gz",
            "should hold 60 labels from 0 to 9, but holds shape",
        ),
        ("train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz", "should hold images of 28x28, but holds shape"),
    ],
)
def test_files_that_do_not_belong_together(tmp_path, name, source, message):
    write_fashion_mnist(tmp_path)
    (tmp_path / name).write_bytes((tmp_path / source).read_bytes())
    with pytest.raises(ValueError, match=message):
        load_task("fashion-mnist", tmp_path)
