"""What a comparison runs and counts."""

import json
from dataclasses import replace

import pytest
import torch

from tests.weit.compare.miniature import TARGETS, Here, flops
from weit.bank import TemplateBank
from weit.compare import CompareConfig, compare, jobs
from weit.compare.run import start_name
from weit.engine.processes import Processes
from weit.models import load_model
from weit.rivals import RIVALS
from weit.tasks import load_task
from weit.tasks.classification import Classification


def test_every_target_and_initializer_has_an_outcome(compared):
    _, comparison, _ = compared
    assert [row.target for row in comparison.rows] == TARGETS
    assert [row.kind for row in comparison.rows] == ["narrower and shallower, seen", "same size"]
    for row in comparison.rows:
        assert list(row.outcomes) == ["scratch", "scratch_longer", "weight_selection", "weit"]
        for name, outcome in row.outcomes.items():
            assert len(outcome.tests) == 2
            if name != "scratch_longer":
                assert [step for step, _, _ in outcome.curve] == [0, 2, 4, 5]


def test_work_before_step_0_is_counted(compared, prepared):
    _, comparison, _ = compared
    bank = TemplateBank.from_pretrained(prepared / "bank").source.config["training_flops"]
    source = load_model(prepared / "source")[1]["training_flops"]
    assert source == 6 * 8 * flops("32x2")
    assert 6 * 8 * flops("16x1") <= bank <= source
    for row in comparison.rows:
        step = 8 * flops(row.target)
        assert row.flops == step
        assert row.outcomes["scratch"].extra_steps == 0
        assert row.outcomes["weit"].extra_steps == pytest.approx(3 + bank / len(TARGETS) / step)
        assert row.outcomes["weight_selection"].extra_steps == pytest.approx(source / len(TARGETS) / step)
        assert row.outcomes["scratch_longer"].steps == 5 + round(row.outcomes["weit"].extra_steps)


def test_cells_start_where_their_initializer_says(compared, prepared):
    _, comparison, ran = compared
    for target, row in zip(TARGETS, comparison.rows, strict=True):
        start, _ = load_model(prepared / start_name(target, row.outcomes["weit"].start_lr, 1))
        assert not any("scalers" in name for name in start.state_dict())
        (job, result) = next(ran[name] for name in ran if name.startswith(f"cells/weit/{target}") and "seed1" in name)
        assert result["curve"][0] == [0, load_task("digits").evaluate(start, "test")["accuracy"]]
        assert result["curve"][-1] == [5, pytest.approx(result["test"]["accuracy"])]
        assert job.paths["start"] == prepared / start_name(target, row.outcomes["weit"].start_lr, 1)


def test_another_bank_or_another_fitting_makes_other_cells(compared, prepared):
    """What a result on disk is recognised by follows from everything that went into it."""
    config, comparison, ran = compared
    name = next(name for name in ran if name.startswith(f"cells/weit/{TARGETS[0]}"))
    start = ran[name][0].arguments["start"]
    assert (start["steps"], start["lr"]) == (config.fit_steps, comparison.rows[0].outcomes["weit"].start_lr)
    assert len(start["bank"]) == 128
    rival = next(name for name in ran if name.startswith("cells/weight_selection/"))
    assert len(ran[rival][0].arguments["start"]["source"]) == 64


def test_a_rival_is_left_out_where_it_cannot_serve(rivals):
    comparison, ran = rivals
    narrow, wide = comparison.rows
    assert list(narrow.outcomes) == ["scratch", "ligo", "bert2bert", "mimetic", "distillation", "weit"]
    assert list(wide.outcomes) == ["scratch", "ligo", "bert2bert", "mimetic", "tleg", "distillation", "weit"]
    assert list(narrow.absent) == ["tleg"]
    assert narrow.absent["tleg"].startswith("source and target must differ in depth alone, but pos_embed is")
    assert not any(name.startswith("cells/tleg/16x1") for name in ran)


def test_what_rivals_do_before_step_0_is_counted(rivals, prepared):
    comparison, _ = rivals
    source, small = (load_model(prepared / name)[1]["training_flops"] for name in ("source", "small"))
    for row in comparison.rows:
        extra, step = {name: outcome.extra_steps for name, outcome in row.outcomes.items()}, row.flops
        assert extra["mimetic"] == 0
        assert extra["bert2bert"] == pytest.approx(small / 2 / step)
        assert extra["ligo"] == pytest.approx(3 + small / 2 / step)
        answers = 3 * 8 * flops("32x2") / 3  # three steps of the teacher's forward pass
        assert extra["distillation"] == pytest.approx(3 + answers / step + source / 2 / step)
    learngene = 3 * 8 * flops("32x2") * 4 / 3  # three steps of a model as large as the source, and the source's answers
    wide = comparison.rows[1]
    assert wide.outcomes["tleg"].extra_steps == pytest.approx((source + learngene) / wide.flops)


def test_rivals_that_learn_are_told_how_long(rivals):
    _, ran = rivals
    for name in ("ligo", "tleg", "distillation"):
        assert ran[f"cells/{name}/32x2-lr0.001-seed0"][0].arguments["start"]["learn"] == {
            "steps": 3, "batch_size": 8, "lr": 2e-3 if name == "ligo" else 4e-3,
        }  # fmt: skip
    assert "learn" not in ran["cells/bert2bert/32x2-lr0.001-seed0"][0].arguments["start"]


@pytest.mark.parametrize("kind", ["bank", "source"])
def test_a_pre_training_that_was_interrupted_goes_on(tmp_path, kind, monkeypatch):
    function = jobs.make_bank if kind == "bank" else jobs.make_source
    arguments = {"task": {"data": "digits"}, "model": "vit", "size": {"width": 16, "depth": 2},
                 "settings": {"steps": 6, "batch_size": 8, "evaluate_every": 2, "checkpoint_every": 2}}  # fmt: skip
    if kind == "bank":
        arguments["smaller"] = [{"width": 16, "depth": 1}]
    shares = []

    def report(share):
        shares.append(share)
        if len(shares) == 2:  # at step 4, before its checkpoint
            raise KeyboardInterrupt

    whole = function(tmp_path / "whole", {}, ignore, **arguments)
    with pytest.raises(KeyboardInterrupt):
        function(tmp_path / kind, {}, report, **arguments)
    assert not (tmp_path / kind).exists()
    resumed = function(tmp_path / kind, {}, report, **arguments)
    assert len(shares) == 4  # steps 4 and 6 alone
    assert whole["seconds"] > 0
    assert resumed == {**whole, "seconds": None}  # of which nobody knows how long it took
    for file in (tmp_path / "whole").iterdir():
        assert file.read_bytes() == (tmp_path / kind / file.name).read_bytes()
    assert {path.name for path in tmp_path.iterdir()} == {"whole", kind}


def test_the_call_is_kept_from_before_the_first_job(tmp_path):
    class Stopped(Here):
        def follow(self, lines, title, work=0.0):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        compare(CompareConfig(out=tmp_path, targets=["16x1"]), Stopped(tmp_path), flags={"targets": ["16x1"]})
    assert (tmp_path / "config.yaml").read_text() == "targets:\n- 16x1\n"
    with pytest.raises(FileNotFoundError):
        compare(CompareConfig(out=tmp_path, bank=tmp_path / "none"), Stopped(tmp_path), flags={"bank": "none"})
    assert (tmp_path / "config.yaml").read_text() == "targets:\n- 16x1\n"  # a call that was refused leaves no trace


def test_data_that_break_a_resumed_pre_training_cost_no_checkpoints(tmp_path):
    def make(**run):
        if run.get("resume"):
            raise ValueError("inputs must be finite")
        raise AssertionError("begun anew")

    (tmp_path / "bank-run").mkdir()
    with pytest.raises(ValueError, match="must be finite"):
        jobs._resumable(make, tmp_path / "bank-run", {})
    assert (tmp_path / "bank-run").is_dir()


def test_an_interrupted_pre_training_with_other_settings_begins_anew(tmp_path):
    common = {"task": {"data": "digits"}, "model": "vit", "size": {"width": 16, "depth": 1}}
    settings = {"steps": 4, "batch_size": 8, "evaluate_every": 2, "checkpoint_every": 2}

    def interrupted(share):
        if share == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        jobs.make_source(tmp_path / "small", {}, interrupted, **common, settings=settings)
    assert (tmp_path / "small-run").is_dir()
    other = {**settings, "lr": 2e-3}
    found = jobs.make_source(tmp_path / "small", {}, ignore, **common, settings=other)
    assert found["seconds"] is not None
    jobs.make_source(tmp_path / "whole", {}, ignore, **common, settings=other)
    models = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("small", "whole")]
    assert models[0] == models[1]
    assert not (tmp_path / "small-run").exists()


def test_a_bank_without_its_model_is_refused(tmp_path, prepared):
    bank = TemplateBank.from_pretrained(prepared / "bank")
    bank.source = None
    bank.save_pretrained(tmp_path / "bank")
    config = CompareConfig(out=tmp_path, bank=tmp_path / "bank", rivals=[])
    with pytest.raises(ValueError, match=r"bank must hold a pre-trained model's scalers too, but .* has none"):
        compare(config, Here(tmp_path))


def test_a_rival_that_serves_no_target_is_shown_as_such(tmp_path, prepared):
    config = CompareConfig(
        out=tmp_path, bank=prepared / "bank", source=prepared / "small", targets=["32x2"], rivals=["weight_selection"],
        lrs=[1e-3], seeds=1, steps=1, batch_size=8, fit_steps=1,
    )  # fmt: skip
    (row,) = compare(config, Here(tmp_path)).rows
    assert list(row.outcomes) == ["scratch", "weit"]
    assert "source must" in row.absent["weight_selection"]


def test_what_is_not_given_is_made_where_a_rival_needs_it(tmp_path):
    config = CompareConfig(
        out=tmp_path, targets=["16x1"], rivals=["bert2bert"], size="32x1", smaller=["16x1"], small_size="16x1",
        pretrain_steps=2, lrs=[1e-3], seeds=1, steps=1, batch_size=8, fit_steps=1, templates=4, template_shape=(16, 16),
        full_share=1.0,
    )  # fmt: skip
    pool = Here(tmp_path)
    comparison = compare(config, pool)
    assert {"bank", "small"} <= pool.ran.keys()
    assert "source" not in pool.ran
    bank = TemplateBank.from_pretrained(tmp_path / "bank")
    assert {tuple(bank[role].shape) for role in bank.roles} == {(4, 16, 16)}
    assert comparison.pretraining["weit"] == bank.source.config["training_flops"] == 2 * 8 * flops("32x1")
    assert set(comparison.seconds) == {"bank", "small", "fitting"}


def test_who_needs_no_bank_does_not_wait_for_it(tmp_path):
    class SlowBank(Here):
        def next_job(self, waiting):
            index = next((i for i in reversed(range(len(waiting))) if waiting[i][1].name != "bank"), -1)
            return waiting.pop(index)[1]

    config = CompareConfig(
        out=tmp_path, targets=TARGETS, rivals=["scratch_longer", "bert2bert"], size="32x2", smaller=["16x1"],
        small_size="16x1", pretrain_steps=2, lrs=[1e-3, 2e-3], fit_lrs=[1e-3], seeds=1, steps=2, batch_size=8, fit_steps=1,
    )  # fmt: skip
    slow, usual = SlowBank(tmp_path), Here(tmp_path)
    compare(config, slow)
    names = [*slow.ran]
    before, after = names[: names.index("bank")], names[names.index("bank") + 1 :]
    assert {name.split("/")[1] for name in before if "/" in name} == {"scratch", "bert2bert"}
    assert len([name for name in before if name.startswith("cells")]) == 4
    assert {name.split("/")[1] for name in after if not name.startswith("starts")} == {"scratch_longer", "weit"}
    compare(config, usual)
    assert usual.ran.keys() == slow.ran.keys()
    assert [*usual.ran][:2] == ["bank", "starts/32x2-lr0.001-seed0"]  # what others wait for, then the longest line
    assert usual.work == pytest.approx(
        sum(job.work for job, _ in usual.ran.values())
        - sum(each.work - usual.ran[f"cells/scratch/{name.split('/')[2]}"][0].work
              for name, (each, _) in usual.ran.items() if "longer" in name)
    )  # fmt: skip


def test_a_given_bank_may_have_patches_of_another_size_than_the_data_call_for(tmp_path):
    size = "width=16,depth=1,patch_size=4"
    common = {
        "targets": [size], "size": size, "smaller": [], "rivals": [], "lrs": [1e-3], "fit_lrs": [1e-3], "seeds": 1,
        "steps": 1, "batch_size": 8, "fit_steps": 1, "pretrain_steps": 1,
    }  # fmt: skip
    for folder in ("first", "second"):
        (tmp_path / folder).mkdir()
    first = compare(CompareConfig(out=tmp_path / "first", **common), Here(tmp_path / "first"))
    bank = {"bank": tmp_path / "first" / "bank"}
    second = compare(CompareConfig(out=tmp_path / "second", **common, **bank), Here(tmp_path / "second"))
    assert second.rows[0].outcomes["weit"].tests == first.rows[0].outcomes["weit"].tests


def test_a_start_whose_scores_are_not_finite_keeps_those_of_a_fresh_model(tmp_path, prepared, monkeypatch):
    config = CompareConfig(
        out=tmp_path, targets=["16x1"], rivals=["weight_selection"], lrs=[1e-3], seeds=1, steps=1, batch_size=8,
        fit_lrs=[1e-3], fit_steps=1, bank=prepared / "bank", source=prepared / "source",
    )  # fmt: skip

    def spoilt(target, source, **_):
        with torch.no_grad():
            next(target.parameters()).fill_(float("nan"))
        return target

    usual = compare(config, Here(tmp_path)).rows[0].outcomes
    monkeypatch.setitem(RIVALS, "weight_selection", spoilt)
    monkeypatch.setattr(Classification, "evaluate", _finite_or_nan(Classification.evaluate))
    (tmp_path / "spoilt").mkdir()
    found = compare(replace(config, out=tmp_path / "spoilt"), Here(tmp_path / "spoilt")).rows[0].outcomes
    assert found["weight_selection"].tests == [found["scratch"].curve[0][1]]
    assert found["weit"].tests == usual["weit"].tests


def _finite_or_nan(evaluate):
    def scores(self, model, split, **how):
        broken = any(parameter.isnan().any() for parameter in model.parameters())
        return {"accuracy": float("nan")} if broken else evaluate(self, model, split, **how)

    return scores


@pytest.mark.parametrize("model", ["resnet", "convnext"])
def test_a_convnet_from_data_to_rows(tmp_path, model):
    pytest.importorskip("transformers")
    config = CompareConfig(
        out=tmp_path, model=model, targets=["8x2", "16x3"], rivals=["all"], size="16x2", smaller=["8x2"],
        source_size="16x3", small_size="8x2", pretrain_steps=2, lrs=[1e-3], seeds=1, steps=1, batch_size=8, fit_steps=1,
    )  # fmt: skip
    narrow, wide = compare(config, Here(tmp_path)).rows
    for row in (narrow, wide):
        assert {"scratch", "weight_selection", "bert2bert", "distillation", "weit"} <= row.outcomes.keys()
        assert {"mimetic", "tleg", "ligo"} == row.absent.keys()


def test_mixed_precision_is_that_of_all_training_and_absent_from_jobs_without_it(
    prepared, compared, tmp_path, monkeypatch
):
    seen = []
    usual = Processes.__init__

    def watched(self, mixed_precision="no", *others):
        seen.append(mixed_precision)
        usual(self, mixed_precision, *others)

    monkeypatch.setattr(Processes, "__init__", watched)
    config = CompareConfig(
        out=tmp_path, size="16x1", smaller=[], source_size="16x1", small_size="16x1", targets=["16x1"],
        rivals=["weight_selection", "ligo"], lrs=[1e-3], seeds=1, steps=2, batch_size=8, evaluate_every=2, fit_steps=2,
        pretrain_steps=2, mixed_precision="bf16",
    )  # fmt: skip
    compare(config, Here(tmp_path))
    assert len(seen) >= 9  # bank, source, small; fitting, ligo's operators; scratch, selection, ligo, WeiT
    assert set(seen) == {"bf16"}
    assert not any("mixed_precision" in json.dumps(job.arguments) for job, _ in compared[2].values())


@pytest.mark.parametrize("name", ["rates/scratch/16x1-lr0.001", "cells/scratch/16x1-lr0.001-seed0", "small"])
def test_a_model_is_scored_where_it_is_trained(name, compared, prepared, monkeypatch):
    ran = compared[2]
    devices = []

    def evaluate(self, model, split, **quick):
        devices.append(next(model.parameters()).device.type)
        return {"accuracy": 0.5}

    def trained(task, network, config, *, evaluate, **run):
        for _ in range(-(-config.steps // config.evaluate_every)):
            evaluate(network)

    monkeypatch.setattr(jobs, "training_device", lambda: torch.device("meta"))
    monkeypatch.setattr(jobs, "train_dense", trained)
    monkeypatch.setattr(jobs, "save_model", lambda *others, **settings: None)
    monkeypatch.setattr(Classification, "evaluate", evaluate)
    if name == "small":
        settings = {"steps": 6, "batch_size": 8, "evaluate_every": 3}
        size = {"width": 16, "depth": 1}
        jobs.make_source(
            prepared / "other", {}, ignore, task={"data": "digits"}, model="vit", size=size, settings=settings
        )
    else:
        cell = next(job for job, _ in ran.values() if job.name.startswith(name.split("-lr")[0]))
        cell.function(prepared / "other", cell.paths, ignore, **cell.arguments)
    assert devices
    assert set(devices) == {"meta"}


def ignore(share):
    pass


def test_the_bank_may_learn_from_a_teacher(prepared, tmp_path):
    config = CompareConfig(
        out=tmp_path, small=prepared / "small", size="32x2", smaller=["16x1"], targets=["16x1"], teacher="small",
        rivals=[], lrs=[1e-3], fit_lrs=[1e-3], seeds=1, steps=2, batch_size=8, fit_steps=0, pretrain_steps=4,
    )  # fmt: skip
    pool = Here(tmp_path)
    taught = compare(config, pool)
    job, _ = pool.ran["bank"]
    assert job.paths["teacher"] == prepared / "small"
    alone = compare(replace(config, out=tmp_path / "alone", teacher="none"), Here(tmp_path / "alone"))
    banks = [TemplateBank.from_pretrained(folder / "bank") for folder in (tmp_path, tmp_path / "alone")]
    assert not torch.equal(banks[0]["q"], banks[1]["q"])
    teacher, answers = load_model(prepared / "small")[1]["training_flops"], 4 * 8 * flops("16x1") / 3
    assert taught.pretraining["weit"] - alone.pretraining["weit"] == pytest.approx(teacher + answers)
