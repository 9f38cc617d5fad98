import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from weit.compare.lines import Job
from weit.compare.pool import Pool


def double(folder, paths, report, *, value):
    """Leaves a line for each time it runs."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "runs").open("a") as file:
        file.write(f"{os.getpid()} {torch.get_num_threads()}\n")
    report(0.5)
    if value == "refuse":
        raise ValueError("value must be a number, got 'refuse'")
    if value == "die":
        os._exit(3)
    return {"doubled": 2 * value, "seen": paths["text"].read_text()}


def sleep(folder, paths, report, *, seconds):
    time.sleep(seconds)


def linger(folder, paths, report):
    """Says where it runs, and when it is ended."""
    folder.mkdir()
    (folder / "pid").write_text(str(os.getpid()))
    try:
        time.sleep(60)
    finally:
        (folder / "ended").touch()


def appears(path, seconds):
    until = time.monotonic() + seconds
    while not path.exists() and time.monotonic() < until:
        time.sleep(0.05)
    return path.exists()


def job(out, name, value, work=1.0):
    (out / "text").write_text("x")
    return Job(name, double, {"value": value}, {"text": out / "text"}, work)


def runs(out, name):
    return (out / name / "runs").read_text().splitlines()


@pytest.fixture(scope="module")
def first(tmp_path_factory):
    """Three jobs that one pool has done in two calls; starting workers takes seconds, so the tests share them."""
    out = tmp_path_factory.mktemp("pool")
    with Pool(out, 2) as pool:
        results = pool.run([job(out, "a", 1), job(out, "deep/b", 2, work=5.0)], "some")
        results += pool.run([job(out, "c", 3), job(out, "a", 1)], "more")
    return out, results


def test_results_come_in_the_order_of_the_jobs(first):
    _, results = first
    assert [result["doubled"] for result in results] == [2, 4, 6, 2]
    assert {result["seen"] for result in results} == {"x"}


def test_each_job_ran_once_on_one_thread(first):
    out, _ = first
    lines = [runs(out, name) for name in ("a", "deep/b", "c")]
    assert [len(each) for each in lines] == [1, 1, 1]
    assert {line.split()[1] for each in lines for line in each} == {"1"}
    assert len({line.split()[0] for each in lines for line in each}) <= 2


def test_a_result_is_one_json_file(first):
    out, _ = first
    record = json.loads((out / "deep/b.json").read_text())
    assert record == {"arguments": {"value": 2}, "result": {"doubled": 4, "seen": "x"}}


def test_what_is_on_disk_needs_no_worker(first):
    out, _ = first
    with Pool(out, 0) as pool:
        assert pool.run([job(out, "c", 3)], "again")[0]["doubled"] == 6


def test_other_arguments_or_a_damaged_file_run_again(first):
    out, _ = first
    (out / "a.json").write_text('{"arguments": {"value": 1}, "res')
    with Pool(out, 1) as pool:
        results = pool.run([job(out, "a", 1), job(out, "c", 4)], "again")
    assert [result["doubled"] for result in results] == [2, 8]
    assert len(runs(out, "a")) == len(runs(out, "c")) == 2


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("refuse", "bad failed: ValueError: value must be a number, got 'refuse'"),
        ("die", "the worker of bad died with exit code 3"),
    ],
)
def test_a_failure_is_one_error_and_finished_jobs_stay(tmp_path, value, message):
    # With one worker the bad job, which is the cheaper one, comes after the good one.
    jobs = [job(tmp_path, "bad", value, work=1.0), job(tmp_path, "good", 1, work=2.0)]
    with pytest.raises(RuntimeError, match=message), Pool(tmp_path, 1) as pool:
        pool.run(jobs, "failing")
    assert json.loads((tmp_path / "good.json").read_text())["result"]["doubled"] == 2
    assert not (tmp_path / "bad.json").exists()


def test_a_worker_that_died_while_it_was_idle_is_one_error(tmp_path):
    with Pool(tmp_path, 1) as pool:
        pool.run([job(tmp_path, "good", 1)], "first")
        (process,) = pool._processes.values()
        process.kill()
        process.join()
        with pytest.raises(RuntimeError, match=r"the worker of next died with exit code -9 \(killed"):
            pool.run([job(tmp_path, "next", 1)], "second")


def test_leaving_ends_busy_workers(tmp_path):
    begun = time.monotonic()
    pool = Pool(tmp_path, 1)
    with pool:
        pool._hire()
        pool._give(Job("long", sleep, {"seconds": 1000}))
        (process,) = pool._processes.values()
    assert not process.is_alive()
    assert time.monotonic() - begun < 100


def test_a_worker_leaves_when_its_parent_is_gone(tmp_path: Path):
    pool = Pool(tmp_path, 1)
    pool._hire()
    ((connection, process),) = pool._processes.items()
    connection.close()
    process.join(timeout=60)
    assert process.exitcode == 0


def test_a_busy_worker_ends_when_its_parent_is_killed(tmp_path: Path):
    call = (
        "from tests.weit.compare.test_pool import Job, Path, Pool, linger\n"
        f"with Pool(Path({str(tmp_path)!r}), 1) as pool: pool.run([Job('long', linger, {{}})], 'long')"
    )
    with subprocess.Popen([sys.executable, "-c", call], stderr=subprocess.DEVNULL) as parent:
        assert appears(tmp_path / "long/pid", 60)
        parent.terminate()
    ended = appears(tmp_path / "long/ended", 20)
    if not ended:
        os.kill(int((tmp_path / "long/pid").read_text()), signal.SIGKILL)
    assert ended
