"""Reinforcement learning from the starts of a miniature comparison."""

import json

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
    recorded().save(folder / "episodes.safetensors")
    config = CompareConfig(
        out=folder, family="control", data=NAME, root=folder / "episodes.safetensors", size="16x2", smaller=["16x1"],
        source_size="16x2", small_size="16x1", targets=["16x2"], rivals=["weight_selection", "bert2bert"], seeds=1,
        templates=2, template_shape=[8, 8], pretrain_steps=4, steps=2, evaluate_every=1, fit_steps=2, lrs=[1e-3],
    )  # fmt: skip
    write_report(compare(config), folder)
    return folder


def test_every_start_of_a_comparison_learns_on(comparison, tmp_path):
    out, page = tmp_path / "out.json", tmp_path / "page.md"
    reinforce.main([str(comparison), str(out), str(page), "--steps", "2048"])
    curves = json.loads(out.read_text())["curves"]["16x2"]
    assert list(curves) == list(reinforce.STARTS)
    assert all([steps for steps, _ in seed] == [0, 2048] for seeds in curves.values() for seed in seeds)
    assert len({seeds[0][0][1] for seeds in curves.values()}) == len(curves)  # no two starts are the same policy
    assert page.read_text().count("\n| 16x2 |") == len(curves)


def test_the_table_has_means_and_deviations_in_per_cent():
    curves = {"64x2": {"scratch": [[(0, 0.1), (8, 0.3)], [(0, 0.3), (8, 0.5)]]}}
    assert "| 64x2 | scratch | 20 ± 14 | 40 ± 14 | 30 ± 14 |" in reinforce.page({"curves": curves})


def test_targets_of_the_comparison_alone_can_be_asked_for(comparison, tmp_path, capsys):
    with pytest.raises(SystemExit):
        reinforce.main([str(comparison), str(tmp_path / "out.json"), "--targets", "16x9"])
    assert "targets must be of 16x2, got 16x9" in capsys.readouterr().err


def test_what_is_no_comparison_of_policies_is_refused(tmp_path, capsys):
    with pytest.raises(SystemExit):
        reinforce.main([str(tmp_path), str(tmp_path / "out.json")])
    assert "results.json" in capsys.readouterr().err
