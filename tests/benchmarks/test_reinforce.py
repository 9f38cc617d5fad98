"""Reinforcement learning after a miniature comparison."""

import pytest

pytest.importorskip("gymnasium", reason="needs weit[control]")
pytest.importorskip("stable_baselines3", reason="needs weit[control]")

from benchmarks import reinforce
from tests.weit.tasks.pendulum import NAME, recorded
from weit.compare import CompareConfig, compare
from weit.report import write_report


@pytest.fixture(scope="module")
def comparison(tmp_path_factory):
    folder = tmp_path_factory.mktemp("compare")
    episodes = tmp_path_factory.mktemp("data") / "episodes.safetensors"
    recorded().save(episodes)
    config = CompareConfig(
        out=folder, family="control", data=NAME, root=episodes, size="16x2", smaller=["16x1"],
        source_size="16x2", small_size="16x1", targets=["16x2"], rivals=["weight_selection", "bert2bert"], seeds=1,
        templates=2, template_shape=[8, 8], pretrain_steps=4, steps=2, evaluate_every=1, fit_steps=2, lrs=[1e-3],
    )  # fmt: skip
    write_report(compare(config), folder)
    return folder


SMALL = {"steps": 128, "rollout": 64, "critic_first": 0, "batch_size": 32, "evaluate_every": 64, "episodes": 2,
         "episode_steps": 20}  # fmt: skip


def test_every_start_of_a_comparison_learns_on(comparison):
    results = reinforce.reinforce(comparison, SMALL)
    curves = results["curves"]["16x2"]
    assert list(curves) == ["scratch", "weight_selection", "bert2bert", "weit"]
    assert all([steps for steps, _ in seed] == [0, 64, 128] for seeds in curves.values() for seed in seeds)
    assert all(seeds[0][0][1] != seeds[0][-1][1] for seeds in curves.values())
    assert len({seeds[0][0][1] for seeds in curves.values()}) == len(curves)  # no two starts are the same policy
    assert reinforce.page(results).count("\n| 16x2 |") == len(curves)
    chosen = reinforce.reinforce(comparison, SMALL, ["16x2"], ["weit"])["curves"]
    assert chosen == {"16x2": {"weit": curves["weit"]}}


def test_the_table_has_means_and_deviations_in_per_cent():
    curves = {"64x2": {"scratch": [[(0, 0.1), (8, 0.3), (12, 0.3)], [(0, 0.3), (8, 0.5), (12, 0.5)]]}}
    about = {"processor": "", "torch": ""}
    results = {"curves": curves, "machine": about, "model": "", "data": "", "cloning steps": 3, "settings": {}}
    assert "| 64x2 | scratch | 20 ± 14 | 40 ± 14 | 40 ± 14 | 33 ± 14 |" in reinforce.page(results)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--targets", "16x9"], "targets must be of 16x2, got 16x9"),
        (["--starts", "magic"], "starts must be of bert2bert, scratch, weight_selection, weit, got magic"),
        (["--steps", "0"], "--steps must be at least 1, got 0"),
    ],
)
def test_what_the_comparison_does_not_have_is_named(comparison, tmp_path, capsys, flags, message):
    with pytest.raises(SystemExit):
        reinforce.main([str(comparison), str(tmp_path / "out.json"), *flags])
    assert message in capsys.readouterr().err


def test_a_comparison_of_images_is_refused(comparison, tmp_path):
    kept = (comparison / "results.json").read_text()
    (tmp_path / "results.json").write_text(kept.replace('"family": "control"', '"family": "classification"'))
    with pytest.raises(ValueError, match="must be a comparison of policies, got the family classification"):
        reinforce.reinforce(tmp_path, SMALL)


def test_a_folder_without_a_comparison_is_refused(tmp_path, capsys):
    with pytest.raises(SystemExit):
        reinforce.main([str(tmp_path), str(tmp_path / "out.json")])
    assert "results.json" in capsys.readouterr().err
