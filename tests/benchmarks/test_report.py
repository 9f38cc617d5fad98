"""Tables, plots and pages from a small made-up result file, and the command that makes real ones."""

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks import html, report
from benchmarks.behind import behind, family, not_ahead
from benchmarks.results_file import Results
from benchmarks.same_work import FEW, MANY, pairs, same_work

SIZES = {"N": 4, "m": 16, "n": 16, "p": 256, "q": 256, "kernel": []}
PARTS = {"parameters": 2**20, "gradients": 2**20, "optimiser": 2**21, "saved": 2**22, "peak": None}


BY_VISIT = [{"dense_seconds": ratio, "seconds": 1.0} for ratio in (3.1, 3.3, 3.0)]
VISITS = {"fastest": 0.1, "visits": 3, "rounds": 20, "median": 0.004, "dense_median": 0.012}


def figures(suite: str, contender: str, ratio: float, **others: Any) -> dict[str, Any]:
    """A row as ``benchmarks.duel`` writes it: the dense layer takes 10 ms."""
    row = {"suite": suite, "shape": "llm_4096", "phase": "train", "contender": contender, "rows": 256, "sizes": SIZES}
    row |= {"limit": 3.7, "error": 1e-7, "dense_error": 1e-7, "about": f"how {contender} works", "iqr": 1e-5}
    row |= {"seconds": 0.01 / ratio, "dense_seconds": 0.01, "dense_iqr": 1e-5, "ratio": ratio}
    return {**row, **others}


def made_up() -> dict[str, Any]:
    growth = {"suite": "growth", "what": "one layer", "axis": "N", "seconds": 0.01, "iqr": 0.001}
    growth |= {"dense_seconds": 0.02, "dense_iqr": 0.001, "ratio": 2.0}
    rows = [
        figures("linear", "auto", 3.25, plan="templates_first_torch", by_visit=BY_VISIT, **VISITS),
        figures("linear", "scalers_first_torch", 3.5, **VISITS),
        figures("linear", "materialised", 0.9),
        figures("peers", "auto", 3.25, plan="templates_first_torch"),
        figures("peers", "opt_einsum", 3.3),
        figures("peers", "phm", 0.5),
        {"suite": "models", "shape": "resnet50", "phase": "step", "contender": "kronify", "batch": 4, "parameters": 2e6,
         "dense_parameters": 25e6, "ratio": 0.75, "seconds": 2 / 3, "dense_seconds": 0.5},
        *({**growth, "value": value} for value in (1, 2, 4)),
    ]  # fmt: skip
    memory = {"what": "one layer", "weights": "dense", "dtype": "float32", "how": "counted", "found": PARTS,
              "predicted": {**PARTS, "peak": 2**23}}  # fmt: skip
    who = {"suite": "peers", "shape": "llm_4096", "phase": "train"}
    return {
        "machine_info": {"weit": {"processor": "made up", "cores": "2"}, "threads": 2},
        "commit_info": {"id": "0123456789abcdef", "dirty": True},
        "datetime": "2026-01-02T03:04:05",
        "benchmarks": [{"extra_info": row} for row in rows] + [{"extra_info": {}}],
        "weit": {
            "device": "cpu",
            "dtype": "float32",
            "quick": False,
            "keeps_memory": True,
            "large_pages": True,
            "not_run": [{**who, "contender": name, "reason": "peft is not installed"} for name in ("peft", "lokr")],
            "failed": [{**who, "contender": "fastkron", "reason": "WrongResult: relative error 1.0e-01 in x"}],
            "memory": [memory],
            "budgets": [{"budget_gb": 8, "depth_dense": 4, "depth_kron": 100, "width_dense": 1536, "width_kron": 12544,
                         "templates": 256}],
        },
    }  # fmt: skip


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "made-up.json"
    path.write_text(json.dumps(made_up()))
    return path


def test_the_document_holds_every_table(file: Path, tmp_path: Path) -> None:
    out = tmp_path / "docs" / "benchmarks.md"
    report.main([str(file), "--out", str(out), "--plots", str(tmp_path / "docs" / "img")])
    text = out.read_text()
    for line in (
        "## made-up",
        "processor made up, cores 2, threads 2, freed memory kept, large tensors on large pages, "
        "visits 3 to 3 a figure, rounds 20 to 20 a figure, device cpu, dtype float32, commit 0123456789ab with "
        "local changes",
        "| llm_4096 | train | 256 | 10.000 (12.000 ± 0.010) | 3.077 (4.000 ± 0.010) | 3.25 | 3.00 to 3.30 | 3.70 | 0.88 "
        "| templates_first_torch | scalers_first_torch 3.50 | 0.90 |  |",
        "Times are what the fastest tenth of the interleaved rounds of a visit take (of ten or fewer, the fastest)",
        "| llm_4096 | train | 256 | 3.25 | 3.30 | 0.50 | opt_einsum |",
        "`opt_einsum`: how opt_einsum works.",
        "| resnet50 | 4 | 25.0 M | 2.0 M | 8.00 | 6.00 | 0.75 |",
        "| one layer | N | 4 | 20.000 ± 1.000 | 10.000 ± 1.000 | 2.00 |",
        "| one layer | dense | float32 | counted | 1.0 (1.0) | 1.0 (1.0) | 2.0 (2.0) | 4.0 (4.0) | – (8.0) |",
        "| resnet50 | train | dense |  | 1.00 | 0.75 | 1.33 | clearly | a whole model |",
        "| 8 GB | 4 | 100 | 1536 | 12544 | 256 |",
        "| peers | peft, lokr | llm_4096 | 2 | peft is not installed |",
        "| peers | fastkron | llm_4096 | 1 | WrongResult: relative error 1.0e-01 in x |",
    ):
        assert line in text, line
    assert text.index("### FAILED") < text.index("### This package")
    for plot in ("growth", "peers"):
        assert f"](img/benchmarks-made-up-{plot}.png)" in text
        assert (out.parent / "img" / f"benchmarks-made-up-{plot}.png").read_bytes().startswith(b"\x89PNG")


def test_a_second_run_is_compared_with_the_first(file: Path, tmp_path: Path) -> None:
    data = made_up()
    rows = [bench["extra_info"] for bench in data["benchmarks"]]
    rows[0]["ratio"] = 4.0
    rows[1]["ratio"] = 3.4
    rows[-2]["ratio"] = 1.7
    again = tmp_path / "made-up-again.json"
    again.write_text(json.dumps(data))
    out = tmp_path / "benchmarks.md"
    report.main([str(again), str(file), "--out", str(out), "--plots", str(tmp_path)])
    text = out.read_text()
    assert "| linear | auto | 1 | 0 | 1 | 1.231 | llm_4096 train x 1.23 |" in text
    assert "| linear | scalers_first_torch | 1 | 1 | 1 | 1.029 |  |" in text
    assert "| growth | auto | 3 | 2 | 2 | 1.000 | one layer, N 4 x 0.85 |" in text
    assert "| all |  | 10 | 8 | 9 | 1.000 |  |" in text
    assert "Run again, 8 of 10 ratios came within a factor of 1.1." in text
    assert text.count("\n## ") == 1
    report.main([str(again), "--out", str(out), "--plots", str(tmp_path)])
    assert "## made-up-again" in out.read_text()


def test_older_files_have_medians(tmp_path: Path) -> None:
    text = "".join(table.note for table in Results.read(old(tmp_path)).tables())
    assert "medians of interleaved rounds ±" in text
    assert "fastest tenth" not in text


def test_medians_and_fastest_rounds_are_no_two_runs(file: Path, tmp_path: Path) -> None:
    again = old(tmp_path).rename(tmp_path / "made-up-again.json")
    with pytest.raises(SystemExit, match="one has medians, one what the fastest rounds take"):
        report.main([str(file), str(again), "--out", str(tmp_path / "b.md"), "--plots", str(tmp_path)])


def old(folder: Path) -> Path:
    """A file from before figures had visits."""
    data = made_up()
    for bench in data["benchmarks"]:
        bench["extra_info"] = {key: value for key, value in bench["extra_info"].items() if key not in VISITS}
    path = folder / "old.json"
    path.write_text(json.dumps(data))
    return path


def test_what_is_no_second_run_is_refused(file: Path, tmp_path: Path) -> None:
    data = made_up()
    data["weit"]["dtype"] = "bfloat16"
    again = tmp_path / "made-up-again.json"
    again.write_text(json.dumps(data))
    twin = tmp_path / "other" / file.name
    twin.parent.mkdir()
    twin.write_text(file.read_text())
    for other, said in ((again, "differ in dtype"), (twin, "two files are called made-up")):
        with pytest.raises(SystemExit, match=said):
            report.main([str(file), str(other), "--out", str(tmp_path / "benchmarks.md"), "--plots", str(tmp_path)])


def test_the_page_holds_machine_tables_and_plots(file: Path, tmp_path: Path) -> None:
    page = html.write(Results.read(file), tmp_path).read_text()
    for part in ("made up", "What could not run, and why", "peft is not installed", "FAILED", "data:image/png;base64,"):
        assert part in page
    assert "quick run" not in page


def test_a_quick_run_says_so(file: Path) -> None:
    data = made_up()
    data["weit"]["quick"] = True
    assert "quick run" in report.document(Results("quick", data), {})


def test_who_is_ahead_is_named_with_what_differs() -> None:
    rows = {row["contender"]: row for row in (bench["extra_info"] for bench in made_up()["benchmarks"][3:6])}
    (case,) = behind("llm_4096", "train", rows, 1.1)
    assert (case.name, case.ours, case.theirs, case.standing) == ("opt_einsum", 3.25, 3.3, "within 1.10")
    assert "keeps the intermediate" in case.differs
    assert "0.88 of its operation limit 3.70 (N = 4)" in case.differs


def test_the_same_work_timed_twice_says_how_far_to_trust_a_ratio() -> None:
    rows = [
        figures("linear", "auto", 3.0, plan="panel_torch"),
        figures("linear", "panel_torch", 3.3),
        figures("linear", "materialised", 3.5),
        figures("peers", "auto", 2.5),
        figures("linear", "auto", 8.0, plan="panel_torch", rows=1, shape="decode"),
        figures("linear", "panel_torch", 8.8, rows=1, shape="decode"),
    ]
    assert [(pair.case, pair.kind) for pair in pairs(rows)] == [
        ("llm_4096 train, by name", MANY),
        ("llm_4096 train, beside peers", MANY),
        ("decode train, by name", FEW),
    ]
    assert [pair.factor for pair in pairs(rows)] == pytest.approx([1.1, 1.2, 1.1])
    assert same_work(rows).rows[1] == [MANY, "2", "1", "1.15", "1.20", "llm_4096 train, beside peers"]
    assert [row[2] for row in not_ahead(rows).rows] == ["materialised"]  # not the path that auto chose
    assert not_ahead(rows).rows[0][7] == "within 1.20"


def test_a_slow_choice_does_not_hide_itself() -> None:
    rows = [
        figures("linear", "auto", 1.0, plan="panel_cpp"),
        figures("linear", "panel_cpp", 3.0),
        figures("linear", "materialised", 2.0),
    ]
    assert [(row[2], row[7]) for row in not_ahead(rows).rows] == [("panel_cpp", "clearly"), ("materialised", "clearly")]


@pytest.mark.parametrize("slower", [1.2, 3.0])
def test_a_busy_machine_is_said_to_be_one(slower: float) -> None:
    data = made_up()
    for bench in data["benchmarks"]:
        if "dense_seconds" in (row := bench["extra_info"]):
            row["dense_median"] = slower * row["dense_seconds"]
    said = Results("", data).reading()
    assert ("dense layer's rounds took 3.00 times its fastest or longer" in said) == (slower > 2)


def test_few_pairs_say_nothing_of_others() -> None:
    data, rows = made_up(), []
    for i in range(10):
        rows += [
            figures(suite, "auto", ratio, shape=f"{i}", plan="") for suite, ratio in (("linear", 1.0), ("peers", 1.05))
        ]
    data["benchmarks"] = [{"extra_info": row} for row in rows]
    assert "Of 10 pairs of this package's ratios" in Results("", data).reading()
    del data["benchmarks"][-1]
    assert "pairs" not in Results("", data).reading()


def test_what_is_further_ahead_than_the_same_work_is_so_clearly() -> None:
    rows = [figures("linear", "auto", 3.0, plan="panel_torch"), figures("linear", "materialised", 3.5)]
    assert not_ahead(rows).rows[0][7] == "clearly"


def test_the_dense_layer_can_be_ahead_by_what_two_runs_may_differ_in() -> None:
    ours = figures("linear", "auto", 0.99, limit=1.0, plan="panel_torch")
    (case,) = behind("deit_b_proj", "forward", {"auto": ours}, 1.1)
    assert (case.name, case.standing) == ("dense", "within 1.10")
    assert case.differs == "neither order saves operations here (limit 1.00, N = 4)"
    assert family({**ours, "rows": 1}) == "few rows"
    assert list(behind("deit_b_proj", "forward", {"phm": ours}, 1.1)) == []


@pytest.mark.parametrize("text", ["{", "[]", '{"benchmarks": []}'])
def test_foreign_files_are_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "other.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"other\.json"):
        Results.read(path)


def test_a_foreign_file_ends_in_one_line(tmp_path: Path) -> None:
    path = tmp_path / "other.json"
    path.write_bytes(b"\xff{")
    with pytest.raises(SystemExit) as ended:
        report.main([str(path), "--out", str(tmp_path / "benchmarks.md"), "--plots", str(tmp_path)])
    assert str(path) in ended.value.code
    assert "\n" not in ended.value.code
    assert not (tmp_path / "benchmarks.md").exists()
