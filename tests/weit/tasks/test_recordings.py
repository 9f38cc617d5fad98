import dataclasses

import pytest
import torch
from safetensors.torch import save_file

from weit.tasks.recordings import Recording


def recording(**changes):
    generator = torch.Generator().manual_seed(0)
    parts = dict(
        environment="Anything-v0",
        observations=torch.randn(12, 3, generator=generator),
        actions=torch.randn(12, 2, generator=generator),
        rewards=torch.arange(12.0),
        lengths=torch.tensor([3, 4, 5]),
        noise=torch.tensor([0.0, 0.5, 0.0]),
        random_rewards=torch.ones(5),
        random_lengths=torch.tensor([1, 4]),
        about={"trained": "not at all"},
    )
    return Recording(**(parts | changes))


def test_returns_are_means_over_whole_or_cut_episodes():
    episodes = recording()
    assert episodes.expert_return(100) == (0 + 1 + 2 + 7 + 8 + 9 + 10 + 11) / 2  # without the noisy one
    assert episodes.expert_return(2) == (0 + 1 + 7 + 8) / 2
    assert episodes.random_return(100) == (1 + 4) / 2
    assert episodes.random_return(2) == (1 + 2) / 2


def test_saved_and_loaded(tmp_path):
    episodes = recording(observations=torch.randn(12, 3).half())
    episodes.save(tmp_path / "episodes.safetensors")
    again = Recording.load(tmp_path / "episodes.safetensors")
    assert again.observations.dtype == torch.float32
    for name, tensor in episodes.tensors().items():
        assert torch.equal(getattr(again, name), tensor.float() if tensor.is_floating_point() else tensor)
    assert (again.environment, again.about) == ("Anything-v0", {"trained": "not at all"})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"observations": torch.zeros(12)}, "observations must be finite, not empty, of 2 dimensions"),
        ({"actions": torch.full((12, 2), torch.nan)}, "actions must be finite.*with NaN"),
        ({"actions": torch.zeros(11, 2)}, "must be as many, got 12, 11 and 12"),
        ({"lengths": torch.tensor([3, 4, 4])}, "lengths must be positive integers that sum to 12"),
        ({"lengths": torch.tensor([0, 6, 6])}, "lengths must be positive integers"),
        ({"lengths": torch.tensor([6, 6]), "noise": torch.zeros(2)}, "at least 3"),
        ({"noise": torch.ones(3)}, "0 for some"),
        ({"noise": torch.zeros(4)}, "noise must be given for each of 3"),
        ({"random_lengths": torch.tensor([1.0, 4.0])}, "random_lengths must be positive integers that sum to 5"),
    ],
)
def test_parts_that_do_not_belong_together(changes, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(recording(), **changes)


def test_files_that_hold_something_else(tmp_path):
    path = tmp_path / "episodes.safetensors"
    with pytest.raises(FileNotFoundError, match=r"no file .*episodes\.safetensors"):
        Recording.load(path)
    recording().save(path)
    whole = path.read_bytes()
    foreign = {
        "cut": whole[:-10],
        "header cut": whole[:20],
        "text": b"no tensors at all",
        "empty": b"",
        "another format": whole.replace(b"weit-episodes", b"wait-episodes"),
        "a part is missing": whole.replace(b'"rewards"', b'"reworks"'),
    }
    for content in foreign.values():
        path.write_bytes(content)
        with pytest.raises(ValueError, match="holds no whole recording of episodes"):
            Recording.load(path)
    save_file({"weight": torch.ones(2)}, path)
    with pytest.raises(ValueError, match="not of format 'weit-episodes'"):
        Recording.load(path)
