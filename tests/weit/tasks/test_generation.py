"""Diffusion as a task: noise, sampling and scores against cases whose answers are known."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load, save
from torch import nn
from torch.utils.data import TensorDataset, default_collate

from tests.weit.tasks.test_classification import write_fashion_mnist
from weit.engine import TrainConfig, train
from weit.models.dit import DiT
from weit.tasks import classification, features, generation
from weit.tasks.diffusion import Noisy, sample, scheduler
from weit.tasks.features import Moments, frechet_distance
from weit.tasks.generation import Generation

pytest.importorskip("diffusers")
CLASSES = 4
MODEL = {"img_size": 8, "in_chans": 1, "num_classes": CLASSES}
PATTERNS = 0.9 * torch.randn(CLASSES, 1, 8, 8, generator=torch.Generator().manual_seed(1)).sign()


def images(count, seed, spread=0.05):
    """A pattern for each class, a little disturbed."""
    labels = torch.arange(count) % CLASSES
    disturbance = spread * torch.randn(count, 1, 8, 8, generator=torch.Generator().manual_seed(seed))
    return TensorDataset((PATTERNS[labels] + disturbance).clamp(-1, 1), labels)


def toy(spread=0.05):
    splits = (Noisy(images(count, seed, spread), CLASSES) for seed, count in enumerate((200, 60, 80)))
    return Generation("toy", *splits, MODEL, 2)


def signal(timesteps):
    """Of an image's variance, the share that is left, for each step ``(n,)`` -> ``(n, 1, 1, 1)``."""
    return scheduler("DDPMScheduler").alphas_cumprod[timesteps].view(-1, 1, 1, 1)


class Oracle(nn.Module):
    """The best denoiser of Gaussian images, whose mean is their class's pattern: it knows what no network has to learn."""

    def __init__(self, patterns=PATTERNS, spread=0.0):
        super().__init__()
        self.patterns = nn.Parameter(patterns)
        self.spread = spread

    def forward(self, noisy, timesteps, labels):
        left = signal(timesteps)
        return (1 - left).sqrt() * (noisy - left.sqrt() * self.patterns[labels]) / (left * self.spread**2 + 1 - left)


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "weit"


@pytest.fixture
def short(monkeypatch):
    """Few steps for the classifier, where its quality does not matter."""
    monkeypatch.setattr(features, "_STEPS", 20)
    monkeypatch.setattr(features, "_BATCH", 32)


def gaussian(mean, covariance):
    return Moments(torch.tensor(mean).double(), torch.tensor(covariance).double())


def test_distance_of_gaussians_in_closed_form():
    one = gaussian([0.0, 0.0], [[4.0, 0.0], [0.0, 1.0]])
    assert frechet_distance(one, one) == pytest.approx(0, abs=1e-12)
    shifted = gaussian([3.0, -4.0], [[4.0, 0.0], [0.0, 1.0]])
    assert frechet_distance(one, shifted) == pytest.approx(25)
    wider = gaussian([0.0, 0.0], [[9.0, 0.0], [0.0, 16.0]])
    assert frechet_distance(one, wider) == pytest.approx((3 - 2) ** 2 + (4 - 1) ** 2)
    point = gaussian([1.0, 0.0], [[0.0, 0.0], [0.0, 0.0]])
    assert frechet_distance(one, point) == frechet_distance(point, one) == pytest.approx(1 + 4 + 1)


def test_distance_of_gaussians_with_other_axes():
    random = torch.Generator().manual_seed(0)
    a, b = (Moments.of(torch.randn(50, 5, generator=random) @ torch.randn(5, 5, generator=random)) for _ in "ab")
    roots = torch.linalg.eigvals(a.covariance @ b.covariance).real.sqrt().sum()
    expected = (a.mean - b.mean).square().sum() + a.covariance.trace() + b.covariance.trace() - 2 * roots
    assert frechet_distance(a, b) == pytest.approx(float(expected))
    assert frechet_distance(a, b) == pytest.approx(frechet_distance(b, a))


def test_moments_are_those_of_numpy():
    x = torch.randn(20, 3, generator=torch.Generator().manual_seed(0))
    found = Moments.of(x)
    np.testing.assert_allclose(found.mean, x.double().numpy().mean(0))
    np.testing.assert_allclose(found.covariance, np.cov(x.double().numpy(), rowvar=False))


def test_judge_knows_real_images_and_trains_once(cache, monkeypatch):
    task = toy(spread=0.3)
    before = torch.get_rng_state()
    judge = task.judge
    assert torch.equal(torch.get_rng_state(), before)
    assert judge.accuracy(task.test.images) > 0.95
    real, _ = task.train.images.tensors
    others = torch.randn(100, 1, 8, 8, generator=torch.Generator().manual_seed(0)).clamp(-1, 1)
    assert judge.distance(task.test.images.tensors[0], "test") == pytest.approx(0, abs=1e-6)
    assert judge.distance(real, "test") < 0.5 < 5 < judge.distance(others, "test")
    assert [path.suffix for path in cache.iterdir()] == [".safetensors"]

    monkeypatch.setattr(features, "_fit", lambda *_: pytest.fail("trained again"))
    assert toy(spread=0.3).judge.distance(others, "test") == judge.distance(others, "test")


@pytest.mark.parametrize("damage", ["empty", "cut", "foreign", "nan"])
def test_a_damaged_classifier_is_trained_again(cache, short, damage):
    expected = toy().judge.distance(PATTERNS, "test")
    (path,) = cache.iterdir()
    state = load(path.read_bytes())
    if damage == "empty":
        path.write_bytes(b"")
    elif damage == "cut":
        path.write_bytes(path.read_bytes()[:-100])
    elif damage == "foreign":
        path.write_bytes(save({"head.weight": torch.zeros(3)}))
    else:
        path.write_bytes(save({**state, "head.bias": state["head.bias"] * torch.nan}))
    assert toy().judge.distance(PATTERNS, "test") == expected
    assert all(torch.equal(tensor, state[name]) for name, tensor in load(path.read_bytes()).items())


def test_other_data_have_another_classifier(cache, short):
    toy().judge, toy(spread=0.06).judge
    assert len(list(cache.iterdir())) == 2


def test_a_judge_is_trained_inside_an_evaluation(cache, short):
    with torch.inference_mode():
        inside = toy().judge.distance(PATTERNS, "test")
    next(cache.iterdir()).unlink()
    assert toy().judge.distance(PATTERNS, "test") == inside


def test_items_are_images_in_noise():
    data = toy().train
    torch.manual_seed(0)
    indices = list(range(100))
    (noisy, timesteps, labels), noise = default_collate(data.__getitems__(indices))
    left = signal(timesteps)
    torch.testing.assert_close(noisy, left.sqrt() * data.images.tensors[0][:100] + (1 - left).sqrt() * noise)
    assert sorted((timesteps // 10).tolist()) == indices  # one of a hundred in each hundredth of the time
    assert float(noise.std()) == pytest.approx(1, abs=0.02)
    kept = labels != CLASSES
    assert torch.equal(labels[kept], data.images.tensors[1][:100][kept])
    assert 0 < int((~kept).sum()) < 30
    torch.manual_seed(0)
    assert torch.equal(default_collate(data.__getitems__(indices))[1], noise)
    (image, timestep, label), target = data[3]
    assert image.shape == target.shape == (1, 8, 8)
    assert timestep.dim() == label.dim() == 0


def test_a_dit_learns_the_same_from_the_same_seed():
    task = toy()
    results = []
    for _ in range(2):
        torch.manual_seed(0)
        model = DiT(**task.arguments("dit", {"width": 16, "depth": 1}))
        torch.rand(5)
        config = TrainConfig(steps=20, lr=1e-2, batch_size=32)
        train(model, task.train, config, loss=task.loss, progress=False)
        results.append(task.evaluate(model, "validation", quick=True)["loss"])
    assert results[0] == results[1] < 0.98


def test_a_perfect_denoiser_has_no_loss_and_makes_the_images(cache, short):
    task, model = toy(spread=0.0), Oracle().train()
    before = torch.get_rng_state()
    scores = task.evaluate(model, "test")
    assert scores == {"loss": pytest.approx(0, abs=1e-6), "frechet": pytest.approx(0, abs=1e-3)}
    assert model.training
    assert torch.equal(torch.get_rng_state(), before)
    torch.testing.assert_close(task.sample(model, [2, 0, 2]), PATTERNS[[2, 0, 2]])
    guided = task.sample(Oracle(torch.cat([PATTERNS, torch.zeros(1, 1, 8, 8)])), [1], guidance=0.5)
    torch.testing.assert_close(guided, PATTERNS[[1]] / 2, atol=1e-4, rtol=0)


def test_scores_are_always_the_same(cache, short):
    task, model = toy(), Oracle(spread=0.1)
    scores = task.evaluate(model, "validation")
    torch.manual_seed(7)
    assert task.evaluate(model, "validation") == scores
    assert task.evaluate(model, "validation", quick=True) == {"loss": scores["loss"]}
    assert task.evaluate(model, "validation", batch_size=50)["loss"] == pytest.approx(scores["loss"])
    assert task.evaluate(model, "test", quick=True)["loss"] != scores["loss"]
    zero = task.evaluate(Oracle(spread=1e6), "validation", quick=True)  # says that there is no noise
    assert zero["loss"] == pytest.approx(1, abs=0.02)


def test_sampling_gives_the_distribution_that_the_denoiser_knows():
    means = torch.tensor([0.3, -0.2]).view(2, 1, 1, 1).expand(2, 1, 4, 4)
    labels = torch.arange(400) % 2
    found = sample(Oracle(means, 0.15), labels, (1, 4, 4), steps=50)
    for label, mean in enumerate((0.3, -0.2)):
        drawn = found[labels == label]
        assert float(drawn.mean()) == pytest.approx(mean, abs=0.015)
        assert float(drawn.std(0).mean()) == pytest.approx(0.15, abs=0.015)
        assert drawn.flatten(1).T.corrcoef().fill_diagonal_(0).abs().max() < 0.3


def test_samples_depend_on_seed_and_label_alone():
    model, labels = Oracle(spread=0.2), torch.arange(6) % CLASSES
    found = sample(model, labels, (1, 8, 8), steps=5)
    torch.testing.assert_close(sample(model, labels, (1, 8, 8), steps=5, batch_size=4), found)
    assert not torch.allclose(sample(model, labels, (1, 8, 8), steps=5, seed=1), found)


def test_a_grid_has_a_column_for_each_class(tmp_path):
    from matplotlib.image import imread

    path = tmp_path / "samples" / "grid.png"
    toy().save_grid(Oracle(torch.cat([PATTERNS, PATTERNS.mean(0, keepdim=True)])), path, rows=3, guidance=1.0)
    pixels = imread(path)[..., 0]
    assert pixels.shape == (3 * 10 * 8, CLASSES * 10 * 8)
    assert pixels[::8, 0].min() == 1  # a white border
    tile = pixels[10 * 8 : 20 * 8, 20 * 8 : 30 * 8][8:-8:8, 8:-8:8]
    np.testing.assert_allclose(tile, (PATTERNS[2, 0] + 1) / 2, atol=0.01)


def test_digits_are_the_images_of_classification():
    task, known = generation.load("digits"), classification.load("digits")
    for split in ("train", "validation", "test"):
        ours, theirs = getattr(task, split).images.tensors, getattr(known, split).tensors
        assert torch.equal(ours[1], theirs[1])
        scaled = (theirs[0] - theirs[0].mean()) / theirs[0].std()
        torch.testing.assert_close((ours[0] - ours[0].mean()) / ours[0].std(), scaled, atol=1e-4, rtol=0)
    assert task.train.images.tensors[0].aminmax() == (-1, 1)
    assert task.arguments("dit", {"width": 32, "depth": 2}) == {
        **{"img_size": 8, "in_chans": 1, "num_classes": 10, "patch_size": 2, "width": 32, "depth": 2}
    }
    assert task.metrics[0].name in task.evaluate(DiT(width=16, depth=1), "test", quick=True)


def test_fashion_mnist_from_a_folder(tmp_path):
    write_fashion_mnist(tmp_path)
    task = generation.load("fashion-mnist", tmp_path)
    assert [len(split) for split in (task.train, task.validation, task.test)] == [50, 10, 20]
    assert task.arguments("dit", {})["img_size"] == 28


def test_what_cannot_be_generated_is_refused(tmp_path, monkeypatch):
    task, model = toy(), Oracle()
    with pytest.raises(ValueError, match="data must be one of fashion-mnist, digits, latents, got 'mnist'"):
        generation.load("mnist")
    with pytest.raises(ValueError, match="model must be \"dit\" to generate images, got 'vit'"):
        task.arguments("vit", {})
    with pytest.raises(ValueError, match="split must be one of"):
        task.evaluate(model, "train")
    with pytest.raises(
        ValueError, match="labels must be from 0 to 4, which stands for any class, got labels from 1 to 5"
    ):
        task.sample(model, [1, 5])
    with pytest.raises(ValueError, match="labels must be integers"):
        task.sample(model, torch.zeros(3))
    with pytest.raises(ValueError, match="labels must be integers"):
        task.sample(model, [])
    with pytest.raises(ValueError, match="steps must be from 1 to 1000, got 0"):
        task.sample(model, [1], steps=0)
    with pytest.raises(ValueError, match="any_label must be given with guidance"):
        sample(model, torch.tensor([1]), (1, 8, 8), guidance=2.0)
    with pytest.raises(OSError, match="could not write"):
        task.save_grid(Oracle(torch.cat([PATTERNS, PATTERNS[:1]])), Path("/dev/null/grid.png"), rows=1, steps=1)
    monkeypatch.setitem(sys.modules, "diffusers", None)
    with pytest.raises(RuntimeError, match=r"image generation needs diffusers: pip install \.\[generation\]"):
        generation.load("digits")
