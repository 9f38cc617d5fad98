"""A miniature comparison, its jobs run in this process, so that what they get and give can be seen."""

import pytest

from tests.weit.compare.miniature import TARGETS, Here
from weit.compare import CompareConfig, compare, jobs


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """A bank and two dense models, trained for a few steps."""
    out = tmp_path_factory.mktemp("compare")
    settings = {"steps": 6, "batch_size": 8, "evaluate_every": 3}
    common = {"task": {"data": "digits"}, "model": "vit", "settings": settings}
    small, size = {"width": 16, "depth": 1}, {"width": 32, "depth": 2}
    jobs.make_bank(out / "bank", {}, lambda share: None, **common, size=size, smaller=[small])
    jobs.make_source(out / "source", {}, lambda share: None, **common, size=size)
    jobs.make_source(out / "small", {}, lambda share: None, **common, size=small)
    (out / "weit-compare.json").touch()
    return out


@pytest.fixture(scope="module")
def compared(prepared):
    config = CompareConfig(
        out=prepared, bank=prepared / "bank", source=prepared / "source", targets=TARGETS,
        lrs=[1e-3, 4e-3], seeds=2, steps=5, batch_size=8, evaluate_every=2, fit_steps=3,
    )  # fmt: skip
    pool = Here(prepared)
    return config, compare(config, pool), pool.ran


@pytest.fixture(scope="module")
def rivals(prepared):
    """All rivals on two targets; the source is as large as the larger, the small one as the smaller."""
    config = CompareConfig(
        out=prepared, bank=prepared / "bank", source=prepared / "source", small=prepared / "small", targets=TARGETS,
        rivals=["ligo", "bert2bert", "mimetic", "tleg", "distillation"],
        lrs=[1e-3], seeds=1, steps=2, batch_size=8, evaluate_every=2, fit_steps=3, ligo_lrs=[2e-3],
    )  # fmt: skip
    pool = Here(prepared)
    return compare(config, pool), pool.ran
