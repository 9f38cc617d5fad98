"""What several tests of the command line start from."""

from pathlib import Path

import pytest

from tests.weit.cli.commands import TINY, run


@pytest.fixture(scope="module")
def bank(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pretrain")
    assert run("pretrain", "--out", folder, "--size", "32x2", "--smaller", "16x1", *TINY) == 0
    return folder / "bank"
