"""What tests of tuning and of what it keeps share."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from weit_kernels import timings


@pytest.fixture
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Each test has a cache file of its own, no shipped ones, and hears every warning."""
    path = tmp_path / "folder" / "tune.json"
    monkeypatch.setenv("WEIT_CACHE", str(path))
    monkeypatch.setattr(timings, "SHIPPED", tmp_path / "configs")
    monkeypatch.delenv("WEIT_TUNE", raising=False)
    timings.warn_once.cache_clear()
    timings._cache.cache_clear()
    yield path
    timings._cache.cache_clear()
