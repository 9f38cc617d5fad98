import copy
import sys

import pytest
import torch

pytest.importorskip("gymnasium", reason="needs weit[control]")
pytest.importorskip("stable_baselines3", reason="needs weit[control]")

from tests.weit.tasks.pendulum import NAME
from weit.models.policy import MLPPolicy, TransformerPolicy
from weit.tasks.reinforce import _windowed, fine_tune
from weit.tasks.rollout import make_environment, returns

SCALE = dict(mean=torch.zeros(3), std=torch.tensor([1.0, 1.0, 4.0]))
SMALL = dict(
    critic_first=0, rollout=64, batch_size=32, n_epochs=2, evaluate_every=64, episodes=2, episode_steps=20, **SCALE
)


def mlp():
    torch.manual_seed(0)
    return MLPPolicy(obs_dim=3, act_dim=1, width=16, depth=1)


def test_the_policy_is_trained_in_place_and_its_curve_returned():
    policy = mlp()
    before = copy.deepcopy(policy.state_dict())
    curve = fine_tune(policy, NAME, 120, **SMALL)
    assert [point.steps for point in curve] == [0, 64, 128]
    assert len({point.score for point in curve}) == 3
    assert all(not torch.equal(tensor, before[name]) for name, tensor in policy.state_dict().items())


def test_the_critic_may_learn_first():
    policy = mlp()
    before = copy.deepcopy(policy.state_dict())
    curve = fine_tune(policy, NAME, 128, **(SMALL | {"critic_first": 128}))
    assert [point.steps for point in curve] == [0, 64, 128]
    assert len({point.score for point in curve}) == 1
    assert all(torch.equal(tensor, before[name]) for name, tensor in policy.state_dict().items())
    assert all(parameter.requires_grad for parameter in policy.parameters())


def test_the_same_seed_gives_the_same_curve_and_leaves_randomness_alone():
    state = torch.get_rng_state()
    first = fine_tune(mlp(), NAME, 64, **SMALL)
    torch.manual_seed(5)
    assert fine_tune(mlp(), NAME, 64, **SMALL) == first
    torch.set_rng_state(state)
    assert fine_tune(mlp(), NAME, 64, seed=1, **SMALL)[1] != first[1]


def test_the_rate_falls_whatever_is_measured(monkeypatch):
    from stable_baselines3 import PPO

    rates, ends = {}, {}
    train = PPO.train
    for every in (64, 1000):
        seen = rates[every] = []

        def trained(self, seen=seen):
            train(self)
            seen.append(self.policy.optimizer.param_groups[0]["lr"])

        monkeypatch.setattr(PPO, "train", trained)
        ends[every] = fine_tune(mlp(), NAME, 256, lr=1e-3, **(SMALL | {"evaluate_every": every}))[-1]
    assert rates[64] == pytest.approx([1e-3, 7.5e-4, 5e-4, 2.5e-4])
    assert rates[64] == rates[1000]
    assert ends[64] == ends[1000]


def test_a_transformer_learns_too():
    torch.manual_seed(0)
    policy = TransformerPolicy(obs_dim=3, act_dim=1, context=4, width=16, depth=1)
    before = policy.blocks[0].attn.q.weight.clone()
    assert len(fine_tune(policy, NAME, 64, context=4, **SMALL)) == 2
    assert not torch.equal(policy.blocks[0].attn.q.weight, before)


def test_training_sees_the_windows_that_are_scored():
    seen = []

    def act(windows):
        seen.append(windows[0])
        return torch.full((1, 1), 0.5)

    returns(act, [make_environment(NAME)], [7], context=3, steps=5, **SCALE)
    environment = _windowed(make_environment(NAME), **SCALE, context=3)
    window, _ = environment.reset(seed=7)
    for expected in seen:
        torch.testing.assert_close(torch.from_numpy(window), expected)
        window = environment.step([0.5])[0]


@pytest.mark.parametrize(
    ("policy", "changes", "message"),
    [
        (MLPPolicy(obs_dim=4, act_dim=1), {}, r"observations must be of shape \(B, 4\), got \(1, 3\)"),
        (MLPPolicy(obs_dim=3, act_dim=2), {}, "policy must answer with 1 numbers, as an action has, got 2"),
        (mlp(), {"mean": torch.zeros(4)}, r"mean and std must be of shape \(3,\).*got \(4,\) and \(3,\)"),
    ],
)
def test_what_does_not_fit_is_refused(policy, changes, message):
    with pytest.raises(ValueError, match=message):
        fine_tune(policy, NAME, 64, **(SMALL | changes))


def test_what_is_not_installed_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "stable_baselines3", None)
    with pytest.raises(RuntimeError, match=r"fine-tuning needs stable-baselines3: pip install \.\[control\]"):
        fine_tune(mlp(), NAME, 64, **SMALL)


@pytest.mark.parametrize("argument", ["evaluate_every", "episodes", "episode_steps"])
def test_numbers_out_of_range_are_refused(argument):
    with pytest.raises(ValueError, match=f"{argument} must be a positive int, got 0"):
        fine_tune(mlp(), NAME, 64, **(SMALL | {argument: 0}))
