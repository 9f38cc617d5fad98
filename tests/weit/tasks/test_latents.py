import pytest
import torch
from safetensors.torch import save_file

from weit.by_name import build
from weit.tasks import load_task

pytest.importorskip("diffusers")


@pytest.fixture
def file(tmp_path):
    generator = torch.Generator().manual_seed(0)
    latents = 5 * torch.randn(60, 4, 8, 8, generator=generator) + torch.arange(60).view(-1, 1, 1, 1) / 60
    save_file({"latents": latents.half(), "labels": torch.arange(60) % 3}, tmp_path / "latents.safetensors")
    return tmp_path / "latents.safetensors"


def test_latents_are_split_and_scaled(file):
    task = load_task("latents", file, "generation")
    splits = [split.images.tensors for split in (task.train, task.validation, task.test)]
    assert [len(images) for images, _ in splits] == [40, 10, 10]
    assert len({tuple(image.flatten().tolist()) for images, _ in splits for image in images}) == 60
    for _, labels in splits[1:]:
        assert sorted(labels.bincount(minlength=3).tolist()) == [3, 3, 4]
    images = torch.cat([images for images, _ in splits])
    assert images.abs().max() <= 1
    assert float(images.std()) == pytest.approx(1 / 3, rel=0.05)


def test_a_dit_takes_them(file):
    task = load_task("latents", file, "generation")
    model = build(task, "dit", {"width": 32, "depth": 1}, 0)
    assert task.evaluate(model, "test", quick=True)["loss"] > 0
    assert task.sample(model, [0, 1], steps=2).shape == (2, 4, 8, 8)


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"latents": torch.zeros(6, 4, 8, 8)}, "should hold latents and labels, but holds latents"),
        ({"latents": torch.zeros(6, 4, 8, 7), "labels": torch.zeros(6).long()}, "the side a multiple of 2"),
        ({"latents": torch.full((6, 4, 8, 8), float("nan")), "labels": torch.zeros(6).long()}, "finite"),
        ({"latents": torch.zeros(6, 4, 8, 8), "labels": torch.zeros(5).long()}, "6 integer labels"),
        ({"latents": torch.zeros(6, 4, 8, 8), "labels": torch.zeros(6)}, "6 integer labels"),
        (None, "is damaged or no safetensors file"),
    ],
)
def test_other_files_are_refused(tmp_path, tensors, message):
    file = tmp_path / "file"
    file.write_bytes(b"nothing") if tensors is None else save_file(tensors, file)
    with pytest.raises(ValueError, match=message):
        load_task("latents", file, "generation")


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="no file of latents at"):
        load_task("latents", tmp_path / "none", "generation")
    with pytest.raises(ValueError, match="root must be a safetensors file for latents"):
        load_task("latents", None, "generation")
