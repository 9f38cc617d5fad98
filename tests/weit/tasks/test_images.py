"""Images from files: splits, augmentation, errors, and training on them from the command line."""

import json
import multiprocessing
import struct
import sys
import zlib

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import weit
from weit.cli import main
from weit.engine.data import Batches
from weit.tasks import load_task
from weit.tasks.image_folder import UnreadableImage, read_folder, read_rgb
from weit.tasks.images import _patch_size

COLOURS = {"blue": (0, 0, 255), "green": (0, 255, 0), "red": (255, 0, 0)}
TINY = ["--steps", "2", "--batch-size", "4", "--log-every", "1"]


def picture(name: str, number: int, size: tuple[int, int] = (24, 20)) -> Image.Image:
    """Noise around the colour of the class; no two alike."""
    noise = np.random.default_rng(zlib.crc32(f"{name}{number}".encode())).integers(-40, 40, (size[1], size[0], 3))
    return Image.fromarray(np.clip(np.array(COLOURS[name]) + noise, 0, 255).astype(np.uint8))


def write_classes(folder, images=12, start=0, classes=tuple(COLOURS)):
    for name in classes:
        (folder / name).mkdir(parents=True)
        for number in range(start, start + images):
            picture(name, number).save(folder / name / f"{number}.{'png' if number % 2 else 'jpg'}")
    return folder


def write_splits(folder, **splits):
    for start, (split, images) in enumerate((splits or {"train": 6, "val": 2, "test": 3}).items()):
        write_classes(folder / split, images, 100 * start)
    return folder


@pytest.fixture(scope="module")
def classes(tmp_path_factory):
    return write_classes(tmp_path_factory.mktemp("classes"))


@pytest.fixture(scope="module")
def splits(tmp_path_factory):
    return write_splits(tmp_path_factory.mktemp("splits"))


def folder(root, **options):
    return load_task("folder", root, image_size=16, **options)


def files(dataset):
    return [dataset.source.samples[item][0] for item in dataset.items]


def parts(task):
    return [task.train.dataset, task.validation, task.test]


def test_classes_are_split_by_class_and_always_alike(classes):
    task = folder(classes)
    assert [len(part) for part in parts(task)] == [24, 6, 6]
    assert [np.bincount([part[i][1] for i in range(len(part))]).tolist() for part in parts(task)] == [
        [8, 8, 8],
        [2, 2, 2],
        [2, 2, 2],
    ]
    found = [path for part in parts(task) for path in files(part)]
    assert len(set(found)) == len(found) == 36
    assert [files(part) for part in parts(task)] == [files(part) for part in parts(folder(classes))]
    assert files(task.test) != sorted(files(task.test))


def test_given_splits_are_kept(splits):
    task = folder(splits)
    for part, name, count in zip(parts(task), ("train", "val", "test"), (18, 6, 9), strict=True):
        assert len(part) == count
        assert all(path.startswith(str(splits / name)) for path in files(part))


def test_a_missing_split_is_taken_from_training(tmp_path):
    task = folder(write_splits(tmp_path, train=12, validation=2))
    assert [len(part) for part in parts(task)] == [30, 6, 6]
    assert all("/train/" in path for path in files(task.test))
    assert not set(files(task.test)) & set(files(task.train.dataset))


def test_a_class_may_be_called_train(tmp_path):
    write_classes(tmp_path)
    (tmp_path / "red").rename(tmp_path / "train")
    assert folder(tmp_path).test.source.classes == ["blue", "green", "train"]


def test_what_a_model_needs_to_know(classes):
    task = folder(classes)
    assert task.arguments("vit", {"width": 16}) == {
        "img_size": 16,
        "in_chans": 3,
        "num_classes": 3,
        "patch_size": 2,
        "width": 16,
    }
    assert "patch_size" not in task.arguments("timm:test_vit", {})
    assert [_patch_size(size) for size in (8, 28, 64, 224, 30)] == [1, 4, 8, 28, 3]


def test_images_are_normalised_tensors(classes):
    image, label = folder(classes).validation[0]
    assert (type(image), image.dtype, image.shape, type(label)) == (torch.Tensor, torch.float32, (3, 16, 16), int)
    brightest = torch.stack([folder(classes, augment="none").train.dataset[i][0].mean((1, 2)) for i in range(24)])
    labels = torch.tensor([folder(classes).train.dataset[i][1] for i in range(24)])
    assert torch.equal(brightest.argmax(1), 2 - labels)  # blue, green, red


@pytest.mark.parametrize("augment", ["crop", "randaugment"])
def test_augmentation_follows_from_the_step(classes, augment):
    batches, again = (Batches(folder(classes, augment=augment).train, 24, seed=1) for _ in range(2))
    first, later = batches.batch(0), batches.batch(5)
    for step, (images, labels) in ((5, later), (0, first)):
        assert torch.equal(again.batch(step)[0], images)
        assert torch.equal(again.batch(step)[1], labels)
    ordered = [
        images[index.argsort()] for (images, _), index in ((first, batches.indices(0)), (later, batches.indices(5)))
    ]
    assert all(not torch.equal(one, other) for one, other in zip(*ordered, strict=True))


def test_evaluation_and_no_augmentation_are_fixed(classes):
    task = folder(classes, augment="none")
    for dataset in (task.train.dataset, task.validation):
        assert torch.equal(dataset[0][0], dataset[0][0])


def test_workers_change_nothing(classes):
    alone, helped = (Batches(folder(classes, workers=count).train, 8) for count in (0, 2))
    for one, other in zip(alone.stream(0, 4), helped.stream(0, 4), strict=True):
        assert torch.equal(one[0], other[0])
        assert torch.equal(one[1], other[1])

    class Colour(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.ones(()))

        def forward(self, images):
            return images.mean((2, 3)).flip(1) * self.scale

    scores = [folder(classes, workers=count).evaluate(Colour(), "test") for count in (0, 2)]
    assert scores[0] == scores[1]
    assert scores[0]["accuracy"] == 1


def test_workers_are_for_many_images_and_idle_cores(classes, monkeypatch):
    assert folder(classes).train.num_workers == 0
    assert folder(classes, workers=1).train.num_workers == 1
    monkeypatch.setattr("weit.tasks.images._SMALL", 1)
    monkeypatch.setattr("os.sched_getaffinity", lambda _: range(6), raising=False)
    monkeypatch.setattr("torch.get_num_threads", lambda: 4)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("torch.utils.data.DataLoader.check_worker_number_rationality", lambda _: None)
    assert folder(classes).train.num_workers == folder(classes).workers == 2
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert folder(classes).train.num_workers == 0
    monkeypatch.delenv("LOCAL_WORLD_SIZE")
    monkeypatch.setitem(multiprocessing.current_process()._config, "daemon", True)
    assert folder(classes).train.num_workers == 0


def test_upright_and_in_three_channels(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter
    Image.new("RGB", (30, 10)).save(tmp_path / "turned.jpg", exif=exif)
    assert read_rgb(str(tmp_path / "turned.jpg")).size == (10, 30)
    for mode in ("L", "P", "RGBA", "1"):
        Image.new(mode, (4, 4)).save(tmp_path / "image.png")
        assert read_rgb(str(tmp_path / "image.png")).mode == "RGB"


@pytest.mark.parametrize("litter", [".ipynb_checkpoints", "@eaDir", "__MACOSX"])
def test_hidden_folders_and_thumbnails_are_no_images_of_the_class(tmp_path, litter):
    root = tmp_path / ".cache"
    write_classes(root, 2)
    classes = read_folder(root)["train"].classes
    for folder in (root / "red" / litter, root / "red" / "deeper" / litter / "red", root / litter):
        write_classes(folder, 2)
    (root / "red" / litter / "notes.ipynb").write_text("{}")
    found = read_folder(root)["train"]
    assert found.classes == classes
    assert len(found) == 2 * len(classes)
    assert not any(litter in path for path, _ in found.samples)


def break_missing(root):
    return FileNotFoundError, f"root is not a folder: {root / 'none'}", root / "none"


def break_no_classes(root):
    return FileNotFoundError, f"{root / 'red'} has no class folders", root / "red"


def break_one_class(root):
    root.rename(root.with_name("inside"))
    root.mkdir()
    root.with_name("inside").rename(root / "inside")
    return ValueError, "must have two classes or more, but has only inside", root


def break_empty_class(root):
    (root / "white").mkdir()
    (root / "white/.hidden.png").touch()
    return FileNotFoundError, f"class folder {root / 'white'} holds no images", root


def break_other_file(root):
    (root / "red/notes.txt").write_text("red")
    return ValueError, f"{root / 'red/notes.txt'} is no image", root


def break_content(root):
    (root / "red/3.png").write_text("red")
    return UnreadableImage, f"{root / 'red/3.png'} cannot be read as an image: its content is of no known format", root


def break_depth(root):
    Image.fromarray(np.zeros((8, 8), np.uint16)).save(root / "red/3.png")
    return UnreadableImage, f"{root / 'red/3.png'} cannot be .* more than 8 bits a channel", root


def break_count(root):
    write_classes(root / "white", 2, classes=["red"])
    return ValueError, "class white has too few images to be split, 2; it needs 6", root


def break_splits_differ(root):
    write_splits(root / "split")
    (root / "split/test/red").rename(root / "split/test/white")
    return ValueError, "same classes in every split, but only test has white", root / "split"


def break_split_lacks(root):
    write_splits(root / "split")
    for path in (root / "split/val/red").iterdir():
        path.unlink()
    (root / "split/val/red").rmdir()
    return ValueError, "same classes in every split, but validation has no red", root / "split"


def break_two_validations(root):
    write_splits(root / "split", train=2, val=1, validation=1)
    return ValueError, "must have one validation split, but has validation and val", root / "split"


def break_no_train(root):
    write_splits(root / "split", val=1, test=1)
    return FileNotFoundError, "has test and val, but no folder train", root / "split"


def break_unsorted_train(root):
    (root / "split/train").mkdir(parents=True)
    picture("red", 0).save(root / "split/train/0.png")
    return FileNotFoundError, f"{root / 'split/train'} has no class folders", root / "split"


BREAKS = {name: function for name, function in list(globals().items()) if name.startswith("break_")}


@pytest.mark.parametrize("name", BREAKS)
def test_what_is_wrong_with_a_folder_is_said_before_training(name, tmp_path):
    write_classes(tmp_path / "data", 6)
    kind, message, root = BREAKS[name](tmp_path / "data")
    with pytest.raises(kind, match=message) as caught:
        folder(root)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"root": None}, "data folder needs root"),
        ({"image_size": 4}, "image_size must be at least 8, got 4"),
        ({"augment": "flip"}, "augment must be one of crop, randaugment, none, got 'flip'"),
        ({"workers": -1}, "workers must be 0 or more"),
        ({"data": "digits", "image_size": 16}, "image_size must be left out, digits are in memory as they are"),
        ({"size": 3}, "size must be left out for classification"),
    ],
)
def test_options_are_checked(classes, options, message):
    with pytest.raises(ValueError, match=message):
        load_task(**{"data": "folder", "root": classes, **options})


@pytest.mark.parametrize("workers", [0, 1])
def test_a_damaged_image_is_named_while_training(tmp_path, workers):
    write_classes(tmp_path, 6)
    for path in tmp_path.rglob("*.jpg"):
        path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(UnreadableImage, match=r"^\S+\.jpg cannot be read as an image: [^\n]+$"):
        list(Batches(folder(tmp_path, workers=workers).train, 12).stream(0, 1))


def png_bomb(side):
    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def test_an_image_that_would_fill_the_memory_is_refused(tmp_path):
    (tmp_path / "large.png").write_bytes(png_bomb(100_000))
    with pytest.raises(
        UnreadableImage, match=r"large\.png cannot be read as an image: Image size \(10000000000 pixels\)"
    ):
        read_rgb(str(tmp_path / "large.png"))


@pytest.mark.parametrize(("model", "sizes"), [("vit", ["--size", "16x1"]), ("timm:test_resnet", [])])
def test_training_from_the_command_line(splits, tmp_path, capsys, model, sizes):
    pytest.importorskip("timm")
    flags = ["train", "--family", "classification", "--data", "folder", "--root", splits, "--image-size", 32,
             "--augment", "randaugment", "--model", model, *sizes, "--out", tmp_path / "run", *TINY]  # fmt: skip
    assert main([str(flag) for flag in flags]) == 0
    assert "test accuracy" in capsys.readouterr().out
    assert (tmp_path / "run/model/model.safetensors").is_file()


def test_a_damaged_image_ends_a_run_in_one_line(tmp_path, capsys):
    write_classes(tmp_path / "data", 6)
    for path in (tmp_path / "data/red").iterdir():
        path.write_bytes(path.read_bytes()[:-200])
    flags = ["--root", tmp_path / "data", "--image-size", 16, "--size", "16x1", "--workers", 1, "--batch-size", 12]
    assert main(["train", "--data", "folder", *map(str, flags), "--steps", "3", "--out", str(tmp_path / "run")]) == 1
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("weit train")]
    assert len(lines) == 1
    assert "cannot be read as an image" in lines[0]
    assert "Traceback" not in lines[0]


def test_a_pre_trained_bank_starts_a_model_from_images(classes, tmp_path, capsys):
    """What the images are brought to, and what they are cut into, is that of the bank unless it is named."""
    data = ["--data", "folder", "--root", classes, "--image-size", 16, "--augment", "none"]
    sizes = ["--size", "width=32,depth=2,patch_size=8", "--smaller", "width=16,depth=1,patch_size=8"]
    pretrain = ["pretrain", *data, *sizes, "--out", tmp_path / "pretrained", *TINY]
    assert main([str(flag) for flag in pretrain]) == 0
    made_for = weit.TemplateBank.from_pretrained(tmp_path / "pretrained/bank").source.config
    assert (made_for["image_size"], made_for["augment"]) == (16, "none")
    assert main([str(flag) for flag in (*pretrain, "--augment", "crop", "--resume")]) == 1
    assert "augment: 'none' → 'crop'" in capsys.readouterr().err
    init = ["init", "--root", classes, "--bank", tmp_path / "pretrained/bank", "--size", "16x2", "--steps", 1]
    for named, side, patch in ([], 16, 8), (["--size", "width=16,depth=2,patch_size=4", "--image-size", 32], 32, 4):
        out = tmp_path / f"start{side}"
        assert main([str(flag) for flag in (*init, *named, "--batch-size", 4, "--out", out)]) == 0
        arguments = json.loads((out / "config.json").read_text())["arguments"]
        assert (arguments["img_size"], arguments["patch_size"], arguments["width"]) == (side, patch, 16)


def test_a_library_that_does_not_import_is_named(classes, monkeypatch):
    monkeypatch.delattr("weit.tasks.images")
    monkeypatch.delitem(sys.modules, "weit.tasks.images")
    monkeypatch.setitem(sys.modules, "torchvision.transforms", None)
    with pytest.raises(RuntimeError, match=r"data folder needs torchvision, .* or pip install \.\[images\]"):
        folder(classes)
