from tests.weit.report.example import example
from weit.report.overview import overview


def test_a_line_for_each_comparison_says_means_and_how_weit_stands():
    partly, other = example(), example(rivals=[])
    del partly.rows[2].outcomes["weight_selection"]
    lines = overview([("Vit, on digits", partly), ("again", other)]).splitlines()
    heading, _, first, second = lines[-4:]
    assert heading == "| comparison | score | WeiT | scratch | scratch, same total work | weight selection |"
    # WeiT is ahead of scratch on 64x3, level on 32x6 and behind on 96x8.
    scores = (
        "[Vit, on digits](#vit-on-digits) | accuracy, % (higher is better) | 84.5 | 84.0: 1 / 1 / 1 | 84.0: 1 / 1 / 1"
    )
    assert first == f"| {scores} | 65.0 (WeiT 86.8 on these 2 of 3): 1 / 1 / 0 |"
    assert second == "| [again](#again) | accuracy, % (higher is better) | 84.5 | 84.0: 1 / 1 / 1 |  |  |"


def test_a_start_that_serves_no_target_is_said():
    comparison = example(rivals=["weight_selection"])
    for row in comparison.rows:
        del row.outcomes["weight_selection"]
    assert overview([("a", comparison)]).endswith("| serves none |")
