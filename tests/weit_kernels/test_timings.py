"""The timings on disk: damage, interruptions, several writers."""

import json
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path

import pytest

from weit_kernels import timings

pytestmark = pytest.mark.usefixtures("own_cache")

SECONDS = {"a": 2.0, "b": 1.0}


def test_entries_outlive_the_process(own_cache: Path) -> None:
    timings.cache().put("key", "b", SECONDS)
    assert timings.Cache(own_cache).get("key") == timings.Entry("b", SECONDS)
    assert timings.Cache(own_cache).get("other key") is None
    assert sorted(f.name for f in own_cache.parent.iterdir()) == ["tune.json", "tune.json.lock"]


@pytest.mark.parametrize(
    "text",
    [
        "",
        '{"format": 1, "entries": {"key": ',
        "[]",
        '{"format": 2, "entries": {}}',
        '{"entries": {}}',
        '{"format": 1, "entries": {"key": {"winner": "c", "seconds": {"a": 1.0}}}}',
        '{"format": 1, "entries": {"key": {"winner": "a", "seconds": {"a": NaN}}}}',
        '{"format": 1, "entries": {"key": {"winner": "a", "seconds": {"a": "fast"}}}}',
        '{"format": 1, "entries": {"key": {"winner": ["a"], "seconds": {"a": 1.0}}}}',
        '{"format": 1, "entries": {"key": "a"}}',
    ],
)
def test_a_damaged_or_foreign_cache_is_ignored_with_one_warning(own_cache: Path, text: str) -> None:
    own_cache.parent.mkdir()
    own_cache.write_text(text)
    with pytest.warns(RuntimeWarning, match=r"tuning cache .*tune\.json is ignored"):
        assert timings.cache().get("key") is None
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert timings.Cache(own_cache).get("key") is None
    timings.cache().put("key", "b", SECONDS)
    assert timings.Cache(own_cache).get("key") == timings.Entry("b", SECONDS)


def test_a_file_that_is_no_cache_is_set_aside_before_ours_takes_its_name(own_cache: Path) -> None:
    own_cache.parent.mkdir()
    own_cache.write_text('{"format": 99, "entries": {}}')
    with pytest.warns(RuntimeWarning, match="is ignored"):
        timings.cache().put("key", "b", SECONDS)
    assert own_cache.with_name("tune.json.bad").read_text() == '{"format": 99, "entries": {}}'


def test_a_damaged_entry_costs_only_itself(own_cache: Path) -> None:
    good = '"good": {"winner": "b", "seconds": {"a": 2.0, "b": 1.0}}'
    own_cache.parent.mkdir()
    own_cache.write_text('{"format": 1, "entries": {"bad": {"winner": "c", "seconds": {}}, ' + good + "}}")
    with pytest.warns(RuntimeWarning, match=r"an entry of the tuning cache .*tune\.json is ignored"):
        assert timings.cache().get("good") == timings.Entry("b", {"a": 2.0, "b": 1.0})
    assert timings.cache().get("bad") is None


def test_a_cache_that_is_no_text_is_ignored(own_cache: Path) -> None:
    own_cache.parent.mkdir()
    own_cache.write_bytes(b"\xff\xfe\x00")
    with pytest.warns(RuntimeWarning, match="is ignored"):
        assert timings.cache().get("key") is None


def test_an_interrupted_write_leaves_the_old_cache(own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    timings.cache().put("old", "b", SECONDS)

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(timings.os, "replace", interrupted)
        with pytest.raises(KeyboardInterrupt):
            timings.cache().put("new", "a", SECONDS)
    after = timings.Cache(own_cache)
    assert after.get("old") == timings.Entry("b", SECONDS)
    assert after.get("new") is None
    assert not list(own_cache.parent.glob("*.part"))


def test_a_folder_that_cannot_be_written_costs_one_warning(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    cache = timings.Cache(tmp_path / "file" / "tune.json")
    with pytest.warns(RuntimeWarning, match="cannot be kept"):
        cache.put("key", "b", SECONDS)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        cache.put("key", "a", SECONDS)
    assert cache.get("key") == timings.Entry("a", SECONDS)


def test_concurrent_processes_lose_nothing(own_cache: Path) -> None:
    script = (
        "import sys; from weit_kernels import timings\n"
        "for i in range(40): timings.cache().put(f'{sys.argv[1]} {i}', 'a', {'a': float(i)})\n"
    )
    writers = [subprocess.Popen([sys.executable, "-c", script, name]) for name in ("one", "two")]
    assert [writer.wait(timeout=120) for writer in writers] == [0, 0]
    kept = timings.Cache(own_cache)
    assert all(
        kept.get(f"{name} {i}") == timings.Entry("a", {"a": float(i)}) for name in ("one", "two") for i in range(40)
    )


def test_the_later_of_two_writers_counts(own_cache: Path) -> None:
    first, second = timings.Cache(own_cache), timings.Cache(own_cache)
    first.put("key", "a", SECONDS)
    second.put("key", "b", SECONDS)
    first.put("other", "a", SECONDS)
    for cache in (first, timings.Cache(own_cache)):
        assert cache.get("key") == timings.Entry("b", SECONDS)


def test_shipped_results_serve_where_the_user_has_none(own_cache: Path, tmp_path: Path) -> None:
    timings.Cache(tmp_path / "configs" / "device.json").put("both", "a", SECONDS)
    timings.Cache(tmp_path / "configs" / "device.json").put("shipped", "a", SECONDS)
    timings.cache().put("both", "b", SECONDS)
    assert timings.cache().get("both") == timings.Entry("b", SECONDS)
    assert timings.cache().get("shipped") == timings.Entry("a", SECONDS)
    assert set(json.loads(own_cache.read_text())["entries"]) == {"both"}


def test_where_the_cache_lies(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert timings.cache() is timings.cache()
    monkeypatch.delenv("WEIT_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert timings.cache().path == tmp_path / "weit" / "tune.json"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert timings.cache().path == tmp_path / "home" / ".cache" / "weit" / "tune.json"


def test_a_user_without_a_home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def nowhere() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", nowhere)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("WEIT_CACHE", str(tmp_path / "tune.json"))
    assert timings.cache().path == tmp_path / "tune.json"
    monkeypatch.delenv("WEIT_CACHE")
    assert timings.cache().path.is_relative_to(tempfile.gettempdir())
