import json

import pytest

from tests.weit.report.example import example
from weit.report import table, verdicts, write_report
from weit.report.overview import overview
from weit.report.results import read_results, write_page


@pytest.fixture
def results(tmp_path):
    write_report(example(), tmp_path / "out")
    return tmp_path / "out" / "results.json"


def test_a_comparison_comes_back_as_it_was_written(results):
    comparison, machine = read_results(results)
    assert comparison.rows == example().rows
    assert comparison.config == example().config
    assert (table(comparison), verdicts(comparison)) == (table(example()), verdicts(example()))
    assert "torch" in machine


def test_results_from_before_rates_of_fitting_were_chosen_are_read(results):
    found = json.loads(results.read_text())
    for name, rate in (("fit_lr", 5e-3), ("ligo_lr", 2e-3)):
        del found["config"][f"{name}s"]
        found["config"][name] = rate
    for row in found["rows"]:
        for outcome in row["outcomes"].values():
            del outcome["start_lr"]
    results.write_text(json.dumps(found))
    comparison, _ = read_results(results)
    assert (comparison.config.fit_lrs, comparison.config.ligo_lrs) == ([5e-3], [2e-3])
    for row in comparison.rows:
        assert (row.outcomes["weit"].start_lr, row.outcomes["scratch"].start_lr) == (5e-3, None)
    assert not any("Before step 0" in sentence for sentence in verdicts(comparison))


def test_the_page_has_a_section_with_table_verdicts_and_plot_for_each_file(results, tmp_path):
    page = tmp_path / "docs" / "results.md"
    write_page([results, results], page, "# Results")
    text = page.read_text()
    config = example().config
    title = f"Classification: vit on digits, {config.steps} steps after {config.pretrain_steps} of pre-training"
    assert text.startswith(f"# Results\n\n{overview([(title, example())] * 2)}\n\n## {title}\n")
    assert text.count(table(example())) == 2
    for sentence in verdicts(example()):
        assert f"- {sentence}\n" in text
    assert "![Learning curves of every target](img/results.png)" in text
    assert (page.parent / "img" / "results.png").read_bytes().startswith(b"\x89PNG")
    assert "(../out/results.json)" in text


@pytest.mark.parametrize("damage", ["{", "[]", "{}", None])
def test_other_files_are_refused(results, damage):
    found = json.loads(results.read_text())
    found["rows"][0]["outcomes"]["weit"] = {"tests": 3}
    results.write_text(json.dumps(found) if damage is None else damage)
    with pytest.raises(ValueError, match=r"results.json holds no results of a comparison"):
        read_results(results)
