"""Learning rates are chosen on validation data, and one that blows up is an answer."""

from dataclasses import replace

import pytest

from tests.weit.compare.miniature import TARGETS, Here
from weit.compare import CompareConfig, compare, jobs
from weit.models import create_model, save_model
from weit.tasks import load_task
from weit.tasks.classification import Classification


def test_rates_are_chosen_on_validation_data_with_the_first_seed(compared):
    config, comparison, ran = compared
    for row in comparison.rows:
        for name in ("scratch", "weight_selection"):
            found = {lr: ran[f"rates/{name}/{row.target}-lr{lr:g}"][1]["score"] for lr in config.lrs}
            assert row.outcomes[name].lr == max(found, key=lambda lr: (found[lr], -lr))
        assert row.outcomes["scratch_longer"].lr == row.outcomes["scratch"].lr


def test_all_initializers_get_the_same_rates_schedule_and_data(compared):
    config, _, ran = compared
    grids = {}
    for name, (job, _) in ran.items():
        settings = job.arguments.get("settings", {})
        if name.startswith(("cells/", "rates/")) and "longer" not in name:
            assert (settings["steps"], settings["batch_size"]) == (5, 8)
        if name.startswith("rates/"):
            assert settings["seed"] == 0
            target = name.split("/")[2].partition("-")[0]
            grids.setdefault(name.split("/")[1], set()).add((target, settings["lr"]))
    assert grids["scratch"] == grids["weight_selection"] == grids["weit"]
    assert len(grids["weit"]) == len(TARGETS) * len(config.lrs)


def test_a_rate_that_blows_up_is_an_answer(tmp_path):
    settings = {"steps": 6, "batch_size": 8, "lr": 1e30, "evaluate_every": 2, "log_every": 1, "clip_norm": None}
    arguments = {
        "task": {"data": "digits"}, "model": "vit", "size": {"width": 16, "depth": 1},
        "initializer": "scratch", "start": {}, "settings": settings,
    }  # fmt: skip
    result = jobs.train_cell(tmp_path, {}, lambda share: None, **arguments)
    worst = min(accuracy for _, accuracy in result["curve"])
    assert result["test"] == {"accuracy": worst}
    assert [step for step, _ in result["curve"]] == [0, 2, 4, 6]
    assert jobs.try_rate(tmp_path, {}, lambda share: None, **arguments) == {"score": None}


def test_a_rival_that_finds_no_start_keeps_the_scores_of_a_fresh_model(tmp_path):
    task = load_task("digits")
    arguments = task.arguments("vit", {"width": 16, "depth": 1})
    save_model(create_model("vit", **arguments), tmp_path / "source", "vit", arguments)
    settings = {"steps": 4, "batch_size": 8, "lr": 1e-3, "evaluate_every": 2}
    cell = {"task": {"data": "digits"}, "model": "vit", "size": {"width": 16, "depth": 1}, "settings": settings}
    learn = {"steps": 3, "batch_size": 8, "lr": 1e30}
    run = tmp_path, {"source": tmp_path / "source"}, lambda share: None
    lost = jobs.train_cell(*run, **cell, initializer="distillation", start={"learn": learn})
    fresh = jobs.train_cell(tmp_path, {}, lambda share: None, **cell, initializer="scratch", start={})
    assert [score for _, score in lost["curve"]] == [fresh["curve"][0][1]] * 3
    assert lost["test"] == {"accuracy": fresh["curve"][0][1]}
    assert jobs.try_rate(*run, **cell, initializer="distillation", start={"learn": learn}) == {"score": None}


def test_scores_that_are_no_numbers_count_as_a_rate_that_blew_up(tmp_path, monkeypatch):
    scores = iter([0.5, 0.4, float("nan")])
    monkeypatch.setattr(Classification, "evaluate", lambda *_, **__: {"accuracy": next(scores)})
    result = jobs.train_cell(
        tmp_path, {}, lambda share: None, task={"data": "digits"}, model="vit", size={"width": 16, "depth": 1},
        initializer="scratch", start={}, settings={"steps": 4, "batch_size": 8, "evaluate_every": 1},
    )  # fmt: skip
    assert result["curve"] == [(0, 0.5), (1, 0.4), (2, 0.4), (3, 0.4), (4, 0.4)]
    assert result["test"] == {"accuracy": 0.4}


def test_rates_before_and_after_step_0_are_chosen_together(compared):
    config, comparison, ran = compared
    for row in comparison.rows:
        chosen = row.outcomes["weit"]
        scores = {
            (lr, own): ran[f"rates/weit/{row.target}-lr{lr:g}-after-lr{own:g}"][1]["score"]
            for lr in config.lrs
            for own in config.fit_lrs
        }
        assert scores[chosen.lr, chosen.start_lr] == max(scores.values())
        assert row.outcomes["scratch"].start_lr is None


def test_a_rate_of_fitting_that_diverges_is_an_answer(prepared, tmp_path):
    config = CompareConfig(
        out=tmp_path, bank=prepared / "bank", targets=["16x1"], rivals=[], lrs=[1e-3], fit_lrs=[1e-3, 1e30],
        seeds=1, steps=2, batch_size=8, fit_steps=4,
    )  # fmt: skip
    assert compare(config, Here(tmp_path)).rows[0].outcomes["weit"].start_lr == 1e-3
    with pytest.raises(RuntimeError, match="fitting scalers diverged at the rates of fit_lrs"):
        compare(replace(config, fit_lrs=[1e30], out=tmp_path / "all"), Here(tmp_path / "all"))
