import subprocess
import sys

import weit

CODE = """
import sys, weit
weit.models.load_model
raise SystemExit(", ".join(sys.modules.keys() & {"timm", "transformers", "torchvision", "diffusers"}) or 0)
"""


def test_models_come_with_the_package_and_without_other_libraries():
    found = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stderr


def test_all_that_is_promised_is_there():
    assert [name for name in weit.__all__ if not hasattr(weit, name)] == []
