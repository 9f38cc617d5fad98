"""What ``make gpu-check`` and ``make gpu-tune`` run: build, tests, the suite beside dense layers, goals; tuning."""

import importlib.util

if importlib.util.find_spec("torch") is None:
    raise SystemExit("this Python has no torch; `make gpu-check GPU_PYTHON=...` and gpu-tune take another one")
