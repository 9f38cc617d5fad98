from dataclasses import replace
from pathlib import Path

import pytest

from tests.weit.report.example import example
from weit.compare.config import CompareConfig
from weit.report import LABELS, table, verdicts
from weit.tasks import Metric


def test_the_table_has_a_line_for_each_target_and_start():
    lines = table(example()).splitlines()
    assert len(lines) == 1 + 3 * 4
    assert lines[0].split()[:3] == ["target", "change", "parameters"]
    assert [line.split()[0] for line in lines[1::4]] == ["64x3", "32x6", "96x8"]
    weit = next(line for line in lines if "WeiT" in line)
    assert weit.split() == ["WeiT", "0.004", "50.0", "91.0", "±", "0.7", "20", "65"]
    selection = next(line for line in lines if "weight selection" in line)
    assert selection.split()[-2:] == ["not", "not"]


def test_columns_are_aligned():
    lines = table(example()).splitlines()
    ends = {line.index("±") for line in lines[1:]}
    assert len(ends) == 1


def test_verdicts_name_where_weit_is_ahead_level_and_behind():
    scratch, selection, longer, *_ = verdicts(example())
    assert scratch == (
        "Against scratch, after 40 training steps, WeiT is ahead on 1 of 3 (64x3 +11.0); level (not told apart at "
        "95 %) on 1 of 3 (32x6 +0.5); behind on 1 of 3 (96x8 -10.0) (difference in accuracy, %)."
    )
    assert "Against weight selection" in selection
    assert "for the same total work" in longer


def test_verdicts_tell_total_work_and_what_is_never_reached():
    text = " ".join(verdicts(example()))
    # 64x3: 20 of 40 steps, 65 in total; 32x6: 40 of 40, 85 in total.
    assert "at scratch's final score after 75 % (50 to 100 %) of scratch's steps" in text
    assert "that is 188 % (162 to 212 %) of scratch's work: no saving of work" in text
    assert "WeiT does not come to scratch's final score on 96x8." in text


def test_a_rate_at_the_edge_of_the_list_is_said():
    text = " ".join(verdicts(example()))
    assert (
        "The highest learning rate tried was the best, so one beyond it may be better, for scratch: 64x3, 32x6, 96x8."
        in text
    )
    assert "The lowest" not in text


def test_work_that_nobody_recorded_is_said():
    assert "The bank's pre-training took 0.60 Tflop, 100 % of what" in " ".join(verdicts(example()))
    assert "not recorded in the bank" in " ".join(verdicts(example(pretraining=0.0)))


def test_who_does_not_apply_is_in_the_table_and_the_reason_below():
    comparison = example()
    row = comparison.rows[1]
    del row.outcomes["weight_selection"]
    row.absent["weight_selection"] = "source must be at least as large as target"
    (line,) = [line for line in table(comparison).splitlines() if "apply" in line]
    assert line.split() == ["weight", "selection", "does", "not", "apply"]
    _, selection, *_, last = verdicts(comparison)
    assert "of 2 (" in selection
    assert last == "weight selection does not apply to 32x6: source must be at least as large as target."


def test_every_start_has_a_name():
    assert {*LABELS} == {*CompareConfig(out=Path("out"), rivals=["all"]).starts}


@pytest.mark.parametrize("rivals", [[], ["weight_selection"]])
def test_only_what_was_compared_is_said(rivals):
    found = verdicts(example(rivals=rivals))
    assert len([line for line in found if line.startswith("Against")]) == len(rivals) + 1


def test_means_are_over_the_targets_that_a_start_serves():
    comparison = example()
    assert (
        "Mean over the 3 targets of accuracy, %, higher is better: scratch 84.0, scratch, same total work 84.0, "
        "weight selection 70.0, WeiT 84.5." in verdicts(comparison)
    )
    del comparison.rows[2].outcomes["weight_selection"]
    assert "weight selection 65.0 (on 2 of them, WeiT 86.8 there)" in " ".join(verdicts(comparison))


@pytest.mark.parametrize("kind", ["shallower, seen", "same size"])
def test_means_over_sizes_that_the_pre_training_did_not_run_at_are_told_apart(kind):
    comparison = example()
    rows = [replace(comparison.rows[0], kind=kind), *comparison.rows[1:]]
    text = " ".join(verdicts(replace(comparison, rows=rows)))
    assert "Mean over the 3 targets" in text
    assert "Mean over the 2 that the pre-training did not run at of accuracy, %, higher is better: scratch 86.0" in text
    assert "did not run at" not in " ".join(verdicts(comparison))


def test_where_less_is_better_ahead_means_below():
    comparison = example()
    loss = Metric("loss", "loss", higher=False)
    rows = [
        replace(row, outcomes={name: replace(outcome, metric=loss) for name, outcome in row.outcomes.items()})
        for row in comparison.rows
    ]
    scratch, *_ = verdicts(replace(comparison, metrics=(loss,), rows=rows))
    assert "ahead on 1 of 3 (96x8 -0.10)" in scratch
    assert "behind on 1 of 3 (64x3 +0.11)" in scratch


def test_chosen_rates_before_step_0_are_said():
    said = [sentence for sentence in verdicts(example()) if sentence.startswith("Before step 0")]
    assert said == ["Before step 0 WeiT learned at the best rate of 0.001, 0.01 on validation data: "
                    "0.001 (64x3), 0.001 (32x6), 0.001 (96x8)."]  # fmt: skip
