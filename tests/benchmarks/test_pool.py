"""Several runs as one: whose visits count, what is refused."""

import copy
import json
from pathlib import Path
from types import SimpleNamespace

import pytest

pytest.importorskip("pytest_benchmark")

from benchmarks import conftest, pool, ways
from benchmarks.record import NO_TIME
from benchmarks.results_file import Results
from tests.benchmarks.test_report import made_up


def run(name: str, visits: dict[str, list[tuple[float, float]]], **others: object) -> Results:
    """A run that timed what ``visits`` names: seconds of the dense layer and of the contender."""
    code = {"id": "0123456789abcdef", "dirty": False}
    data = {**made_up(), "commit_info": code, "datetime": f"2026-01-02, run {name}", **copy.deepcopy(others)}
    data["benchmarks"] = [bench(who, found) for who, found in visits.items()] + [
        {"fullname": "memory", "extra_info": {}}
    ]
    return Results(name, data)


def bench(who: str, visits: list[tuple[float, float]]) -> dict[str, object]:
    by_visit = [{"rounds": 5, "dense_seconds": dense, "seconds": seconds} for dense, seconds in visits]
    medians = dict.fromkeys(("median", "dense_median", "iqr", "dense_iqr"), max(max(visit) for visit in visits))
    row = {
        "suite": "linear",
        "shape": who,
        "phase": "train",
        "contender": "auto",
        "fastest": 0.1,
        "ratio": 0.0,
        **medians,
    }
    return {"fullname": who, "extra_info": {**row, "by_visit": by_visit}}


def test_the_fastest_visits_of_all_runs_count() -> None:
    first, second = run("a", {"x": [(4.0, 2.0), (3.0, 2.5)]}), run("b", {"x": [(5.0, 1.0)], "y": [(6.0, 3.0)]})
    pooled = Results("both", pool.pool([first, second]))
    x, y = pooled.rows
    assert (x["dense_seconds"], x["seconds"], x["ratio"]) == (3.0, 1.0, 3.0)
    assert (x["visits"], x["rounds"], x["median"]) == (3, 15, 4.5)
    assert [visit["dense_seconds"] for visit in x["by_visit"]] == [4.0, 3.0, 5.0]
    assert (y["shape"], y["ratio"]) == ("y", 2.0)
    again = pool.pool([pooled, run("c", {"x": [(2.0, 2.0)]})])
    assert again["benchmarks"][0]["extra_info"]["ratio"] == 2.0
    assert Results("", again).machine["runs"] == "3"
    assert [visit["run"] for visit in again["benchmarks"][0]["extra_info"]["by_visit"]] == [0, 0, 1, 2]
    assert first.rows[0]["ratio"] == 0.0  # as it was


def test_medians_of_a_gpu_stay_medians() -> None:
    runs = [run(name, {"x": [(dense, 1.0)]}) for name, dense in (("a", 4.0), ("b", 2.0), ("c", 3.0))]
    for each in runs:
        del each.data["benchmarks"][0]["extra_info"]["fastest"]
    assert pool.pool(runs)["benchmarks"][0]["extra_info"]["ratio"] == 3.0


def test_what_one_run_had_no_time_for_was_run_by_another() -> None:
    who = {"suite": "linear", "phase": "train", "contender": "auto", "reason": NO_TIME}
    weit = made_up()["weit"]
    late = {**weit, "not_run": [{**who, "shape": shape} for shape in "xyw"], "failed": []}
    first = run("a", {"z": [(1.0, 1.0)]}, weit=late)
    missing = {**who, "shape": "y", "reason": "a package is missing"}
    second = run("b", {"x": [(1.0, 1.0)]}, weit={**late, "not_run": [missing]})
    for runs in ([first, second], [second, first]):
        found = pool.pool(runs)["weit"]
        assert {row["shape"]: row["reason"] for row in found["not_run"]} == {"y": missing["reason"], "w": NO_TIME}
    third = run("c", {"x": [(1.0, 1.0)]}, weit={**late, "failed": weit["failed"]})
    assert len(pool.pool([first, third])["weit"]["failed"]) == 1


def test_what_one_run_was_not_asked_for_comes_from_another() -> None:
    weit = made_up()["weit"]
    none = {**weit, "memory": [], "budgets": []}
    found = pool.pool([run("a", {}, weit=none), run("b", {}, weit=weit), run("c", {}, weit=weit)])["weit"]
    assert (found["memory"], found["budgets"]) == (weit["memory"], weit["budgets"])


def test_a_case_without_a_contender_is_known_by_its_test() -> None:
    weit = {**made_up()["weit"], "failed": []}
    late = {"suite": "models", "shape": "test_models[vit]", "case": "x", "reason": NO_TIME}
    budgets = {"suite": "memory", "shape": "test_budgets", "case": "budgets", "reason": NO_TIME}
    first = run("a", {}, weit={**weit, "not_run": [late, budgets], "memory": []})
    assert pool.pool([first, run("b", {"x": [(1.0, 1.0)]}, weit={**weit, "not_run": []})])["weit"]["not_run"] == []
    other = run("b", {"y": [(1.0, 1.0)]}, weit={**weit, "not_run": [], "memory": []})
    assert pool.pool([first, other])["weit"]["not_run"] == [late, budgets]


def test_a_run_counts_once() -> None:
    twice = run("a", {"x": [(1.0, 1.0)]})
    with pytest.raises(ValueError, match="a run counts once"):
        pool.pool([twice, twice])


def test_where_runs_chose_otherwise_both_choices_are_named() -> None:
    runs = [run(name, {"x": [(1.0, 1.0)]}) for name in "abc"]
    for each, plan in zip(runs, ("panel_torch", "panel_cpp", "panel_torch"), strict=True):
        each.data["benchmarks"][0]["extra_info"]["plan"] = plan
    assert pool.pool(runs)["benchmarks"][0]["extra_info"]["plan"] == "panel_torch or panel_cpp"


def test_what_ran_must_be_known() -> None:
    changed = [run(name, {"x": [(1.0, 1.0)]}, commit_info={"id": "0", "dirty": True}) for name in "ab"]
    with pytest.raises(ValueError, match=r"differ in commit \(0 with local changes\)"):
        pool.pool(changed)
    assert Results("a", pool.pool(changed[:1])).rows  # one is of one code


def test_cases_without_time_are_called_as_those_with_figures() -> None:
    params = {"suite": SimpleNamespace(name="pw"), "phase": "train", "contender": SimpleNamespace(name="auto")}
    item = SimpleNamespace(
        path=Path("test_conv.py"), name="test_conv[pw-train-auto]", callspec=SimpleNamespace(params=params)
    )
    assert conftest._who(item) == {"suite": "conv2d", "shape": "pw", "phase": "train", "contender": "auto"}
    alone = SimpleNamespace(path=Path("test_memory.py"), name="test_budgets")
    assert conftest._who(alone) == {"suite": "memory", "shape": "test_budgets"}


@pytest.mark.parametrize("what", ["device", "threads", "processor", "commit", "large_pages"])
def test_runs_of_different_machines_are_not_pooled(what: str) -> None:
    data = made_up()
    data["commit_info"]["dirty"] = False
    if what == "device":
        data["weit"]["device"] = "cuda"
    elif what == "large_pages":
        data["weit"]["large_pages"] = False
    elif what == "threads":
        data["machine_info"]["threads"] = 16
    elif what == "commit":
        data["commit_info"]["id"] = "another"
    else:
        data["machine_info"]["weit"]["processor"] = "another"
    visits = {"x": [(1.0, 1.0)]}
    other = run("b", visits, weit=data["weit"], machine_info=data["machine_info"], commit_info=data["commit_info"])
    with pytest.raises(ValueError, match=f"they differ in {what}"):
        pool.pool([run("a", visits), other])


def test_the_command(tmp_path: Path) -> None:
    files = [tmp_path / "a.json", tmp_path / "b.json"]
    for file, seconds in zip(files, (2.0, 1.0), strict=True):
        file.write_text(json.dumps(run(file.name, {"x": [(4.0, seconds)]}).data))
    pool.main([*map(str, files), "--out", str(files[0])])
    assert Results.read(files[0]).rows[0]["ratio"] == 4.0
    older = run("", {"x": [(4.0, 1.0)]}).data
    del older["benchmarks"][0]["extra_info"]["by_visit"]
    files[1].write_text(json.dumps(older))
    with pytest.raises(SystemExit, match="x does not say what its visits found: an earlier version measured it"):
        pool.main([*map(str, files), "--out", str(tmp_path / "c.json")])
    assert not (tmp_path / "c.json").exists()


def test_pools_are_compared_in_all_ways(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    seconds = {"a": 1.0, "b": 1.02, "c": 1.5, "d": 1.07}
    runs = [run(name, {"x": [(4.0, each)], "y": [(4.0, 1.0)]}) for name, each in seconds.items()]
    del runs[0].data["benchmarks"][1]["extra_info"]["contender"]  # as growth curves have none
    files = [tmp_path / "first.json", tmp_path / "last.json"]
    files[0].write_text(json.dumps(pool.pool(runs[:3])))
    files[1].write_text(json.dumps(runs[3].data))
    ways.main([*map(str, files)])
    said = capsys.readouterr().out
    assert "Of 2 ratios, and of 2 of `auto`" in said
    assert "| two of 1 | 6 | 1, 2, 2 | 1, 1, 2 |" in said  # 1 s, 1.02 and 1.07 agree; 1.02 with both within 1.05
    assert "| two of 2 | 3 | 2, 2, 2 | 1, 2, 2 |" in said  # 1.02 and 1 s, 1.02 and 1, 1 and 1.02 or 1.07
