import dataclasses
import subprocess
import sys
from collections import deque
from itertools import chain

import numpy as np
import pytest
import torch
from torch import nn

import weit
from weit.engine import TrainConfig, train
from weit.models.policy import MLPPolicy, TransformerPolicy

pytest.importorskip("gymnasium", reason="needs weit[control]")

import gymnasium

from tests.weit.tasks.pendulum import NAME, Controller, recorded
from weit.tasks import control, experts
from weit.tasks.control import Control, load
from weit.tasks.rollout import make_environment, returns

MODELS = {"mlp": MLPPolicy, "transformer": TransformerPolicy}


@pytest.fixture(scope="module")
def recording():
    return recorded()


@pytest.fixture(scope="module")
def task(recording):
    return Control(recording)


@pytest.fixture(scope="module")
def hopper():
    pytest.importorskip("mujoco", reason="needs weit[control]")
    return load("Hopper-v5")


def make(task, model, **size):
    torch.manual_seed(0)
    return MODELS[model](**task.arguments(model, {"width": 32, "depth": 2, **size}))


def test_windows_end_with_the_observation_that_was_acted_on(task, recording):
    windows, actions = task.train.tensors
    assert windows.shape[1:] == (task.context, 3)
    lengths = recording.lengths.tolist()
    whole = (recording.observations.float() - task.mean) / task.std
    sources = list(zip(whole.split(lengths), recording.actions.split(lengths), strict=True))
    start = 0
    while start < len(windows):
        first = windows[start, -1]
        episode, wanted = next(pair for pair in sources if torch.allclose(pair[0][0], first))
        assert torch.equal(
            windows[start], episode[:1].expand(task.context, -1)
        )  # nothing before it: the first fills in
        for step in (1, task.context - 1, len(episode) - 1):
            past = episode[max(0, step - task.context + 1) : step + 1]
            assert torch.equal(windows[start + step][-len(past) :], past)
            assert torch.equal(actions[start + step], wanted[step])
        start += len(episode)
    assert start == len(windows)


@pytest.mark.parametrize("count", [3, 8, 20, 100])
def test_episodes_are_split_without_overlap(count):
    parts = control._split(count)
    assert sorted(chain(*parts.values())) == list(range(count))
    assert all(len(part) == max(1, round(0.15 * count)) for split, part in parts.items() if split != "train")


def test_splits_are_whole_and_always_alike(recording):
    one, other = Control(recording), Control(recording)
    assert sum(len(part) for part in one._splits.values()) == len(recording.observations)
    assert all(torch.equal(a, b) for a, b in zip(one.train.tensors, other.train.tensors, strict=True))


def test_observations_are_normalised_by_the_training_episodes(task):
    last = task.train.tensors[0][:, -1].double()
    assert last.mean(0).abs().max() < 1e-5
    assert (last.std(0, correction=0) - 1).abs().max() < 1e-5


def test_the_expert_scores_about_1_and_a_random_policy_about_0(task):
    class Random(Controller):
        def forward(self, windows):
            return 4 * torch.rand(len(windows), 1) - 2

    for quick in (False, True):
        torch.manual_seed(0)
        assert task.evaluate(Controller(task), "test", quick=quick)["return"] == pytest.approx(1, abs=0.2)
        assert task.evaluate(Random(task), "test", quick=quick)["return"] == pytest.approx(0, abs=0.2)


def test_the_error_is_that_on_held_out_episodes(task):
    model = make(task, "mlp")
    for split in ("validation", "test"):
        windows, actions = task._splits[split].tensors
        expected = nn.functional.mse_loss(model(windows), actions).detach()
        assert task.evaluate(model, split)["loss"] == pytest.approx(float(expected), rel=1e-5)


@pytest.mark.parametrize("model", MODELS)
def test_returns_are_those_of_one_episode_after_the_other(task, model):
    policy, seeds = make(task, model).eval(), [3, 4, 5]
    environments = [make_environment(NAME) for _ in seeds]
    scale = dict(mean=task.mean, std=task.std, context=task.context)
    with torch.no_grad():
        together = returns(policy, environments, seeds, **scale, steps=50)
        for seed, found in zip(seeds, together, strict=True):
            environment, total = make_environment(NAME), 0.0
            observation, _ = environment.reset(seed=seed)
            past = deque([observation] * task.context, maxlen=task.context)
            for _ in range(50):
                window = (torch.tensor(np.stack(past)) - task.mean) / task.std
                observation, reward, *_ = environment.step(policy(window[None])[0].numpy().clip(-2, 2))
                past.append(observation)
                total += reward
            assert found == pytest.approx(total, rel=1e-4)


def test_one_episode_may_end_before_another(hopper):
    policy = make(hopper, "mlp").eval()
    scale = dict(mean=hopper.mean, std=hopper.std, context=hopper.context, steps=150)
    with torch.no_grad():
        alone = [returns(policy, [make_environment(hopper.name)], [seed], **scale)[0] for seed in range(3)]
        together = returns(policy, [make_environment(hopper.name) for _ in range(3)], range(3), **scale)
    assert together == pytest.approx(alone, rel=1e-3)
    assert len(set(together)) == 3


@pytest.mark.parametrize("name", [path.stem for path in sorted(control._EPISODES.glob("*.safetensors"))])
def test_shipped_episodes_are_what_the_environment_still_does(name):
    """Undisturbed episodes begin as the environment begins from their seeds, and go on as it does under their actions."""
    pytest.importorskip("mujoco", reason="needs weit[control]")
    shipped = load(name).recording
    environment = make_environment(name)
    space = environment.action_space
    episodes = zip(
        *(part.split(shipped.lengths.tolist()) for part in (shipped.observations, shipped.actions)), strict=True
    )
    other, _ = environment.reset(seed=0)
    for index, (observations, actions) in enumerate(episodes):
        if shipped.noise[index] > 0:
            continue
        observation, _ = environment.reset(seed=experts._SEEDS + index)
        assert abs(observation - observations[0].numpy()).max() < 1e-3 < abs(observation - other).max()
        for following, action in zip(observations[1:5], actions, strict=False):
            observation = environment.step(action.numpy().clip(space.low, space.high))[0]
            assert abs(observation - following.numpy()).max() < 0.03


@pytest.mark.parametrize("model", MODELS)
def test_the_same_model_scores_the_same_whatever_ran_before(hopper, model):
    policy = make(hopper, model)
    first = hopper.evaluate(policy, "validation", quick=True)
    hopper.evaluate(make(hopper, "mlp", width=16), "test")
    assert hopper.evaluate(policy, "validation", quick=True) == first
    assert load("Hopper-v5").evaluate(policy, "validation", quick=True) == first
    assert policy.training
    assert hopper.evaluate(policy, "test", quick=True) != first


def test_a_model_that_diverged_is_scored_too(hopper):
    policy = make(hopper, "mlp")
    with torch.no_grad():
        policy.head.bias.fill_(torch.nan)
    assert np.isfinite(hopper.evaluate(policy, "test", quick=True)["return"])


def test_shipped_episodes_teach_a_policy_to_hop(hopper):
    policy = make(hopper, "mlp")
    before = hopper.evaluate(policy, "validation", quick=True)
    config = TrainConfig(steps=100, batch_size=64, lr=3e-3)
    train(policy, hopper.train, config, loss=hopper.loss, progress=False)
    after = hopper.evaluate(policy, "validation", quick=True)
    assert after["loss"] < 0.1 * before["loss"]
    assert after["return"] > 0.15  # of the way from a random policy; an untrained one that stands still earns 0.3


def test_every_shipped_recording_is_whole_and_its_expert_good():
    pytest.importorskip("mujoco", reason="needs weit[control]")
    files = sorted(control._EPISODES.glob("*.safetensors"))
    assert files
    assert sum(path.stat().st_size for path in files) < 1.6e6
    for path in files:
        shipped = load(path.stem).recording
        assert shipped.environment == path.stem
        assert shipped.expert_return(1000) > shipped.random_return(1000) + 1000


def test_arguments_fit_the_environment(task):
    assert task.arguments("mlp", {"width": 8}) == {"obs_dim": 3, "act_dim": 1, "width": 8}
    assert task.arguments("transformer", {}) == {"obs_dim": 3, "act_dim": 1, "context": task.context}
    with pytest.raises(ValueError, match="a model for control must be one of mlp, transformer, got 'vit'"):
        task.arguments("vit", {})
    with pytest.raises(ValueError, match="split must be one of validation, test, got 'train'"):
        task.evaluate(make(task, "mlp"), "train")


def test_a_file_as_root(recording, tmp_path):
    recording.save(tmp_path / "own.safetensors")
    assert len(load(NAME, tmp_path / "own.safetensors").train) == len(Control(recording).train)
    with pytest.raises(ValueError, match=r"own.safetensors holds episodes of Pendulum-v1, not of Hopper-v5"):
        load("Hopper-v5", tmp_path / "own.safetensors")
    with pytest.raises(FileNotFoundError, match="no file"):
        load(NAME, tmp_path / "other.safetensors")


def test_environments_that_cannot_be():
    with pytest.raises(ValueError, match="no environment 'Hoper-v5'"):
        load("Hoper-v5")
    with pytest.raises(
        ValueError, match=r"episodes come with the package for .*Hopper-v5.*weit.tasks.experts --env Pendu"
    ):
        load(NAME)
    with pytest.raises(ValueError, match="CartPole-v1 must have vectors of numbers as actions"):
        load("CartPole-v1")


def test_episodes_of_another_version_of_the_environment(recording):
    with pytest.raises(ValueError, match="observations have 3 numbers in Pendulum-v1 and 2 in the episodes"):
        Control(dataclasses.replace(recording, observations=recording.observations[:, :2]))


def test_episodes_of_no_expert(recording):
    with pytest.raises(ValueError, match="episodes of Pendulum-v1 must earn more than a random policy"):
        Control(dataclasses.replace(recording, rewards=recording.rewards - 100))


def test_what_is_not_installed_is_named(monkeypatch):
    def missing(*arguments, **settings):
        raise gymnasium.error.DependencyNotInstalled("MuJoCo is not installed")

    with monkeypatch.context() as patch:
        patch.setattr(gymnasium, "make", missing)
        with pytest.raises(RuntimeError, match=r"Hopper-v5 needs its simulator: pip install \.\[control\]"):
            load("Hopper-v5")
    monkeypatch.setitem(sys.modules, "gymnasium", None)
    with pytest.raises(RuntimeError, match=r"control needs Gymnasium: pip install \.\[control\]"):
        load("Hopper-v5")


def test_the_family_is_found_without_gymnasium():
    code = "import sys; sys.modules['gymnasium'] = sys.modules['stable_baselines3'] = None; import weit.tasks.control"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_building_an_environment_leaves_no_log_behind(tmp_path, monkeypatch):
    pytest.importorskip("mujoco", reason="needs weit[control]")
    monkeypatch.chdir(tmp_path)
    make_environment("Hopper-v5")
    assert not list(tmp_path.iterdir())


def test_a_bank_starts_a_clone(task):
    config = weit.PretrainConfig(steps=40, batch_size=64, spec={"templates": 4, "template_shape": (8, 8)})
    model, smaller = make(task, "mlp"), [make(task, "mlp", width=16, depth=1)]
    bank = weit.pretrain(model, task.train, config, smaller=smaller, loss=task.loss, progress=False)
    target = make(task, "mlp", width=16, depth=3)
    before = task.evaluate(target, "test")["loss"]
    weit.initialize(target, bank, task.train, steps=20, loss=task.loss)
    assert task.evaluate(target, "test")["loss"] < 0.7 * before
