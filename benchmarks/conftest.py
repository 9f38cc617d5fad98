"""Threads, and the table of ratios at the end of a run."""

import os

import pytest
import torch

from benchmarks.report import table

torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", os.cpu_count() or 1)))
torch.manual_seed(0)


def pytest_benchmark_update_machine_info(config: pytest.Config, machine_info: dict[str, object]) -> None:
    machine_info["torch"] = torch.__version__


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    rows = [bench.extra_info for bench in config._benchmarksession.benchmarks if "ratio" in bench.extra_info]
    if rows:
        terminalreporter.section("speed beside the dense layer, medians of interleaved rounds")
        terminalreporter.write_line(table(rows))
