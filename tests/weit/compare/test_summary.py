import pytest

from tests.weit.tasks.test_classification import write_fashion_mnist
from weit.compare.prepare import usual
from weit.compare.summary import Outcome, best_rates, kind_of, summarize
from weit.models.create import default_arguments
from weit.tasks import Metric, load_task

ACCURACY = Metric("accuracy", "accuracy, %", scale=100.0, digits=1)
LOSS = Metric("loss", "loss", higher=False)


def cell(*accuracies, every=10):
    curve = [[every * i, accuracy] for i, accuracy in enumerate(accuracies)]
    return {"curve": curve, "test": {"accuracy": accuracies[-1], "loss": 1 - accuracies[-1]}, "parameters": 5}


def test_the_best_rates_are_those_with_the_best_validation():
    scores = {(1e-3, None): 0.5, (2e-3, None): 0.9, (4e-3, None): 0.7}
    assert best_rates(scores, ACCURACY) == (2e-3, None)
    assert best_rates(scores, LOSS) == (1e-3, None)
    assert best_rates({(1e-3, 1.0): None, (1e-3, 2.0): 0.0, (4e-3, 1.0): 0.7}, ACCURACY) == (4e-3, 1.0)
    assert best_rates({(1e-3, 1.0): None, (1e-3, 2.0): 0.9, (4e-3, 1.0): None}, LOSS) == (1e-3, 2.0)


@pytest.mark.parametrize("metric", [ACCURACY, LOSS])
def test_of_equal_rates_the_smallest(metric):
    assert best_rates({(4e-3, None): 0.9, (1e-3, None): 0.9, (2e-3, None): 0.9}, metric) == (1e-3, None)
    assert best_rates({(1e-3, 4e-3): 0.9, (1e-3, 1e-3): 0.9, (2e-3, 1e-3): 0.9}, metric) == (1e-3, 1e-3)


@pytest.fixture
def row():
    cells = {
        "scratch": ((0.004, None), [cell(0.1, 0.5, 0.7), cell(0.1, 0.3, 0.9)]),
        "weit": ((0.002, None), [cell(0.4, 0.8, 0.9), cell(0.6, 0.9, 1.0)]),
        "weight_selection": ((0.002, None), [cell(0.1, 0.2, 0.3), cell(0.1, 0.2, 0.3)]),
    }
    return summarize(
        "32x2", "narrower", 7, cells, {"scratch": 0.0, "weit": 12.5, "weight_selection": 3.0}, (ACCURACY, LOSS)
    )


def test_curves_are_means_over_seeds(row):
    curve = row.outcomes["weit"].curve
    assert [step for step, _, _ in curve] == [0, 10, 20]
    assert [mean for _, mean, _ in curve] == pytest.approx([0.5, 0.85, 0.95])
    assert curve[0][2] == pytest.approx(0.02**0.5)


def test_who_cannot_serve_a_target_is_told_apart():
    cells = {"scratch": ((0.004, None), [cell(0.1, 0.5)])}
    assert summarize("32x2", "wider", 7, cells, {"scratch": 0.0}, (ACCURACY,)).absent == {}
    row = summarize("32x2", "wider", 7, cells, {"scratch": 0.0}, (ACCURACY,), {"tleg": "another width"})
    assert (list(row.outcomes), row.absent) == (["scratch"], {"tleg": "another width"})


def test_where_scratch_ends_is_measured_like_the_other_points():
    """Not by the final score, which a quick measurement may be far from."""
    scratch, weit = cell(0.1, 0.5, 0.9), cell(0.4, 0.8, 0.9)
    scratch["test"], weit["test"] = {"accuracy": 0.6}, {"accuracy": 0.7}
    cells = {"scratch": ((1.0, None), [scratch]), "weit": ((1.0, None), [weit])}
    outcomes = summarize("a", "b", 7, cells, {"scratch": 0.0, "weit": 0.0}, (ACCURACY,)).outcomes
    assert (outcomes["weit"].reached, outcomes["weit"].mean) == (20, 0.7)


def test_reaching_scratch_is_a_matter_of_the_mean_curve(row):
    assert row.outcomes["scratch"].reached == 20  # mean 0.8
    assert row.outcomes["weit"].reached == 10
    assert row.outcomes["weight_selection"].reached is None


def test_what_came_before_step_0_is_kept_apart(row):
    assert row.outcomes["weit"].extra_steps == 12.5
    assert (row.parameters, row.flops) == (5, 7)


def test_a_metric_of_which_less_is_better_is_reached_from_above():
    def losses(*values):
        return {"curve": [[i, value] for i, value in enumerate(values)], "test": {"loss": values[-1]}, "parameters": 5}

    cells = {
        "scratch": ((1e-3, None), [losses(3.0, 2.0, 1.0)] * 2),
        "weit": ((1e-3, None), [losses(2.0, 0.9, 0.5)] * 2),
    }
    outcomes = summarize("32x2", "wider", 7, cells, {"scratch": 0.0, "weit": 0.0}, (LOSS,)).outcomes
    assert (outcomes["scratch"].reached, outcomes["weit"].reached) == (2, 1)
    assert outcomes["weit"].ahead_of(outcomes["scratch"]) == 1


def test_other_metrics_are_kept_by_name_and_a_diverged_run_has_none(row):
    assert row.outcomes["weit"].others == {"loss": pytest.approx([0.1, 0.0])}
    diverged = {**cell(0.1, 0.1), "test": {"accuracy": 0.1}}
    outcomes = summarize(
        "a", "b", 7, {"scratch": ((1.0, None), [diverged])}, {"scratch": 0.0}, (ACCURACY, LOSS)
    ).outcomes
    assert (outcomes["scratch"].tests, outcomes["scratch"].others) == ([0.1], {"loss": []})


def outcome(*tests):
    return Outcome("any", 1e-3, list(tests), {}, [(0, 0.0, 0.0)], 0.0, None, ACCURACY)


@pytest.mark.parametrize(
    ("ours", "theirs", "verdict"),
    [
        ((0.9, 0.92), (0.8, 0.82), 1),
        ((0.8, 0.82), (0.9, 0.92), -1),
        ((0.9, 0.92), (0.86, 0.88), 0),  # apart by twice the spreads together
        ((0.9, 0.9), (0.8, 0.8), 1),  # nothing is left to chance
        ((0.9001,), (0.9,), 0),  # one seed tells nothing apart
        ((0.9,), (0.8, 0.81), 0),
        ((0.8, 0.8), (0.8, 0.8), 0),
    ],
)
def test_ahead_means_by_more_than_chance(ours, theirs, verdict):
    assert outcome(*ours).ahead_of(outcome(*theirs)) == verdict
    assert outcome(*theirs).ahead_of(outcome(*ours)) == -verdict


@pytest.mark.parametrize(
    ("size", "words"),
    [
        ({"width": 32, "depth": 6}, "narrower"),
        ({"width": 96, "depth": 9}, "deeper and wider"),
        ({"width": 64, "depth": 3}, "shallower"),
        ({"width": 64, "depth": 6}, "same size"),
        ({"embed_dim": 32, "depth": 6}, "smaller embed_dim"),
        ({"layers": [2, 3]}, "larger layers"),
        ({"layers": [2, 2]}, "same size"),
        ({"width": 32, "depth": 3}, "narrower and shallower, seen"),
        ({"width": 32, "depth": 3, "head_dim": 16}, "narrower and shallower, seen"),
        ({"width": 32, "depth": 3, "head_dim": 8}, "narrower and shallower and smaller head_dim"),
        ({"width": 64}, "same size"),
    ],
)
def test_changes_in_words(size, words):
    pretrained = {"width": 64, "depth": 6, "embed_dim": 48, "layers": [2, 2]}
    assert kind_of(size, pretrained, [{"width": 32, "depth": 3}], {"depth": 6, "head_dim": 16}) == words


def test_a_default_differs_from_what_was_named_for_the_bank():
    assert kind_of({"width": 64}, {"width": 64, "head_dim": 32}, [], {"head_dim": 16}) == "smaller head_dim"


def test_a_size_of_patches_that_the_data_call_for_is_no_change(tmp_path):
    write_fashion_mnist(tmp_path)
    task = load_task("fashion-mnist", root=str(tmp_path))
    size = {"width": 32, "depth": 2}
    pretrained, default = task.arguments("vit", size), usual(task, "vit")
    assert pretrained["patch_size"] != default_arguments("vit")["patch_size"]
    assert kind_of(size, pretrained, [], default) == "same size"
    assert kind_of({**size, "depth": 3, "patch_size": 7}, pretrained, [], default) == "deeper and larger patch_size"
