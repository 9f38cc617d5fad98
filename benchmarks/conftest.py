"""Options, the order of the suites, what failed, and what the JSON file holds beside pytest-benchmark's figures."""

import time
from collections.abc import Generator
from math import inf
from typing import Any

import pytest
import torch

from benchmarks.again import visit_again
from benchmarks.allocator import keep_freed_memory, use_large_pages
from benchmarks.options import DEADLINES, OPTIONS, SHARES, Options, add_options, read_options
from benchmarks.record import NO_TIME, RECORD, Noted, Record
from benchmarks.suite import select
from benchmarks.tables import compared, ours, peers, whole_models
from weit.report.html import machine

SUITES = {"test_conv": "conv2d"}  # what a suite calls its rows, where that is not what its file is called


def pytest_addoption(parser: pytest.Parser) -> None:
    add_options(parser)


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("numprocesses", None) or hasattr(config, "workerinput"):
        raise pytest.UsageError("the suites time one case after the other: run them without -n")
    config.addinivalue_line("markers", "duels(kind, contenders, cpu_shapes): one test a shape, phase and contender")
    config.stash[OPTIONS], config.stash[RECORD] = read_options(config), Record()
    config.stash[RECORD].keeps_memory, config.stash[RECORD].large_pages = keep_freed_memory(), use_large_pages()
    torch.manual_seed(0)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    marker = metafunc.definition.get_closest_marker("duels")
    if marker is None:
        return
    kind, contenders, cpu_shapes = marker.args
    options = metafunc.config.stash[OPTIONS]
    names = options.shapes or (cpu_shapes if options.cpu else ())
    shapes = select(kind, options.cpu, names, options.quick)
    if not names:  # where time runs out, the fewest shapes are left out
        shapes.sort(key=lambda suite: suite.rows * suite.shape.out_features * suite.shape.in_features)
    metafunc.parametrize(
        ("suite", "phase", "contender"),
        [
            pytest.param(suite, phase, contender, id=f"{suite.name}-{phase}-{contender.name}")
            for suite in shapes
            for phase in suite.phases
            for contender in contenders
        ],
    )


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    order = list(SHARES)  # what decides most comes first; tests of another folder, which a call may name too, last
    items.sort(key=lambda item: order.index(item.path.stem) if item.path.stem in order else len(order))
    config.stash[DEADLINES] = config.stash[OPTIONS].deadlines(item.path.stem for item in items)


@pytest.hookimpl(wrapper=True)
def pytest_runtestloop(session: pytest.Session) -> Generator[None, object, object]:
    benches = session.config._benchmarksession.benchmarks
    try:
        result = yield
        if not session.config.option.collectonly:
            visit_again(session, session.config.pluginmanager.get_plugin("terminalreporter").write_line)
        return result
    finally:  # what was interrupted before its first round would break the file
        benches[:] = [bench for bench in benches if bench.stats.data or bench.has_error]


@pytest.fixture
def options(request: pytest.FixtureRequest) -> Options:
    return request.config.stash[OPTIONS]


@pytest.fixture
def record(request: pytest.FixtureRequest) -> Record:
    return request.config.stash[RECORD]


@pytest.fixture(autouse=True)
def _within_time(request: pytest.FixtureRequest, record: Record) -> None:
    if time.monotonic() > request.config.stash[DEADLINES].get(request.node.path.stem, inf):
        record.skip({**_who(request.node), "case": request.node.nodeid}, NO_TIME)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Put on record what fails in any phase of any suite and is not there yet."""
    report = yield
    if report.failed and call.excinfo is not None and not call.excinfo.errisinstance(Noted):
        item.config.stash[RECORD].note(_who(item), call.excinfo.value)
    return report


def _who(item: pytest.Item) -> dict[str, str]:
    """As ``duel`` names its cases; others by the name of the test."""
    suite = SUITES.get(item.path.stem, item.path.stem.removeprefix("test_"))
    params = item.callspec.params if hasattr(item, "callspec") else {}
    if not {"suite", "phase", "contender"} <= params.keys():
        return {"suite": suite, "shape": item.name}
    return {
        "suite": suite,
        "shape": params["suite"].name,
        "phase": params["phase"],
        "contender": params["contender"].name,
    }


def pytest_benchmark_update_machine_info(config: pytest.Config, machine_info: dict[str, Any]) -> None:
    machine_info["weit"] = machine()
    machine_info["threads"] = torch.get_num_threads()


def pytest_benchmark_update_json(config: pytest.Config, benchmarks: Any, output_json: dict[str, Any]) -> None:
    options = config.stash[OPTIONS]
    dtype = str(options.dtype).removeprefix("torch.")
    output_json["weit"] = {"device": options.device, "dtype": dtype, "quick": options.quick}
    output_json["weit"] |= config.stash[RECORD].rows()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    rows = [bench.extra_info for bench in config._benchmarksession.benchmarks if compared(bench.extra_info)]
    for table in (ours(rows), peers(rows), whole_models(rows)):
        if table.rows:
            terminalreporter.section(table.title)
            terminalreporter.write_line(table.markdown())
    for row in config.stash[RECORD].failed:
        terminalreporter.write_line(f"FAILED: {' '.join(map(str, row.values()))}")
