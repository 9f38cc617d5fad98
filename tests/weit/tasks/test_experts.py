import numpy as np
import pytest
import torch

pytest.importorskip("gymnasium", reason="needs weit[control]")

from tests.weit.tasks.pendulum import NAME, recorded, swing_up
from weit.tasks import experts
from weit.tasks.control import load


def test_targets_are_what_the_expert_wants_where_it_is():
    episodes = recorded()
    assert (episodes.noise != 0).sum() == 3
    assert episodes.expert_return(200) > episodes.random_return(200) + 300
    for observation, action in zip(episodes.observations[::37], episodes.actions[::37], strict=True):
        assert float(action) == pytest.approx(swing_up(observation).item(), abs=0.05)


def test_noise_disturbs_what_is_done():
    clean = recorded(clean=4, noisy=0)
    mixed = recorded(clean=2, noisy=2, noise=0.5)
    two, four = int(clean.lengths[:2].sum()), int(clean.lengths.sum())
    assert torch.equal(clean.observations[:two], mixed.observations[:two])
    assert not torch.equal(clean.observations[two:four], mixed.observations[two:four])


def test_an_episode_recorded_again_is_the_same():
    one, other = recorded(clean=2, noisy=1), recorded(clean=2, noisy=1)
    for name, tensor in one.tensors().items():
        assert torch.equal(tensor, other.tensors()[name])


def test_from_training_to_a_task(tmp_path, capsys, monkeypatch):
    pytest.importorskip("stable_baselines3", reason="needs weit[control]")
    monkeypatch.setattr(experts, "_ROLLOUT", 64)
    state = torch.get_rng_state()
    experts.main(["--env", NAME, "--steps", "120", "--episodes", "2", "--out", str(tmp_path / "own.safetensors")])
    assert "return of the expert" in capsys.readouterr().out
    assert torch.equal(torch.get_rng_state(), state)
    task = load(NAME, tmp_path / "own.safetensors")
    assert task.recording.about["trained"] == "PPO, 120 steps, seed 0"
    assert {"gymnasium", "torch"} <= task.recording.about["versions"].keys()


def test_the_best_expert_is_kept(monkeypatch):
    pytest.importorskip("stable_baselines3", reason="needs weit[control]")
    scores = iter([1.0] * 5 + [5.0] * 5 + [2.0] * 5)
    answers, observation = [], np.array([1.0, 0.0, 0.0], np.float32)

    def judged(environment, act, seed, noise=0.0):
        answers.append(act(observation).item())
        return None, None, np.array([next(scores)])

    monkeypatch.setattr(experts, "_episode", judged)
    monkeypatch.setattr(experts, "_ROLLOUT", 64)
    act = experts.train_expert(NAME, 3 * 64, evaluate_every=64)
    assert act(observation).item() == answers[5]
    assert answers[5] != answers[10]


def test_what_cannot_be_trained():
    with pytest.raises(ValueError, match="no environment 'Nothing-v0'"):
        experts.train_expert("Nothing-v0", 10)
    with pytest.raises(ValueError, match="steps must be positive, got 0"):
        experts.train_expert(NAME, 0)
