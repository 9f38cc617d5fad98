"""The process that measures the suite; ``python -m benchmarks.gpu`` starts it, and starts it again if it dies.

Every contender is first run once and compared with float64, then its memory is measured, then all that passed are timed
in interleaved rounds with the dense layer. A contender that raises or is wrong gets its message instead of a figure.
"""

from __future__ import annotations

import argparse
import gc
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

import weit_kernels
from benchmarks.gpu import memory, timing
from benchmarks.gpu.contenders import AUTO, COMPILED, DENSE, STAGES, build, check, suite_shapes
from benchmarks.gpu.machine import clocks
from benchmarks.gpu.results import Results
from benchmarks.operands import Operands, make_step
from benchmarks.suite import SuiteShape
from weit_kernels.shapes import FEW_ROWS

DEVICE_LOST = 3  # exit status: a kernel's error stays with the process, only a new one can go on


class DeviceLost(RuntimeError):
    """CUDA calls fail from now on, whatever they do."""


@dataclass(frozen=True)
class Item:
    """One row of the result in one stage."""

    stage: str
    suite: SuiteShape
    phase: str
    channels_last: bool = False

    @property
    def name(self) -> str:
        """The shape's name, and the maps' format where it is not torch's default."""
        return self.suite.name + ("_channels_last" if self.channels_last else "")

    @property
    def few(self) -> bool:
        """Whether launches and the weight's bytes, not operations, bound the dense layer."""
        return self.suite.rows <= FEW_ROWS


def phases(suite: SuiteShape) -> tuple[str, ...]:
    """``forward`` and ``train``; for few rows ``forward`` and CUDA graphs, from device memory and from cache."""
    return ("forward", "graph", "graph_warm") if suite.rows <= FEW_ROWS else suite.phases


def items(shapes: Sequence[SuiteShape]) -> Iterator[Item]:
    """All work, the most important first."""
    for stage in STAGES:
        for suite in shapes:
            for channels_last in (False, True) if suite.batch else (False,):
                for phase in phases(suite):
                    yield Item(stage, suite, phase, channels_last)


class Measurement:
    """One run over the items, up to a deadline in seconds since the epoch."""

    def __init__(self, results: Results, device: str, dtype: torch.dtype, quick: bool, deadline: float) -> None:
        self.results, self.device, self.dtype, self.deadline = results, device, dtype, deadline
        # Rounds are spread over this time for each contender, so that clocks and other work disturb all alike.
        self.seconds = 0.005 if quick else 0.06
        self.build: Callable[[str, Operands], torch.nn.Module] = build
        self._operands: tuple[Any, Operands] | None = None

    def run(self, work: Sequence[Item]) -> None:
        """Measure what is not done yet; what the time does not allow is listed under ``not_run``."""
        for item in work:  # all of them, so that a goal knows which rows have no figure
            self.results.row(item.name, item.phase, self._facts(item))
        for index, item in enumerate(work):
            row = self.results.row(item.name, item.phase, self._facts(item))
            if item.stage in row["stages"]:
                continue
            if time.time() > self.deadline:
                left = [i for i in work[index:] if i.stage not in self._stages_done(i)]
                self.results.data["not_run"] = [f"{i.stage}: {i.name}, {i.phase}" for i in left]
                break
            try:
                self.measure(item, row, STAGES[item.stage])
            except DeviceLost:
                raise
            except Exception as error:  # no contender's: the operands, the reference, the clock
                row["failed"] = timing.describe(error)
                self._require_device()
            if item.stage == next(iter(STAGES)):
                row["clocks"] = clocks(self.device)
            self.results.finish(row, item.stage)
        self.results.data["running"] = None
        self.results.save()

    def measure(self, item: Item, row: dict[str, Any], names: Sequence[str]) -> None:
        """Check, measure the memory of, and time ``names`` beside the dense layer."""
        operands = self._prepare(item)
        torch._dynamo.reset()  # else torch.compile gives up on a module's code after eight shapes
        steps: dict[str, timing.Step] = {}
        figures: dict[str, dict[str, Any]] = {}
        for name in (DENSE, *names):
            if "failed" in row["contenders"].get(name, {}):
                continue
            if time.time() > self.deadline:
                if name not in row["contenders"]:
                    self.results.record(row, name, {"skipped": "the time was up"})
                continue
            self.results.start(row, [name])
            try:
                steps[name], figures[name] = self._ready(name, item, operands)
                if name == AUTO:
                    figures[name]["plan"] = self._plan(item, operands)
            except Exception as error:
                self._failed(row, name, error)
        self._time(item, row, steps, figures)

    def _ready(self, name: str, item: Item, operands: Operands) -> tuple[timing.Step, dict[str, Any]]:
        step = make_step(self.build(name, operands), operands, "train" if item.phase == "train" else "forward")
        figures = check(step(), operands)
        if item.phase.startswith("graph"):
            replay = timing.captured(step)
            return replay, check(replay(), operands)
        itemsize = operands.weight.element_size()
        figures |= memory.measure(lambda: list(step().values()), self.device, operands.weight.numel() * itemsize)
        return step, figures

    def _time(
        self, item: Item, row: dict[str, Any], steps: dict[str, timing.Step], figures: dict[str, dict[str, Any]]
    ) -> None:
        if not set(steps) - {DENSE}:
            return
        # Eager calls of a few microseconds are timed back to back: what counts there is how fast calls can follow.
        repeats = 20 if item.few and item.phase != "graph" else 1
        self.results.start(row, [name for name in steps if name != DENSE])
        try:
            samples = timing.interleaved(steps, self._clock(item), self.seconds * len(steps), repeats=repeats)
        except timing.ContenderError as error:
            bad = error.contender
            self._failed(row, bad, error)
            self._time(item, row, {n: s for n, s in steps.items() if n != bad}, figures)
            return
        spreads = {name: timing.spread(values) for name, values in samples.items()}
        dense = spreads.get(DENSE, {}).get("seconds")
        for name, spread in spreads.items():
            if name == DENSE and "seconds" in row["contenders"].get(DENSE, {}):
                continue  # of an earlier stage; each contender is compared with the dense time of its own rounds
            ratio = {} if dense is None else {"dense_seconds": dense, "ratio": dense / spread["seconds"]}
            self.results.record(row, name, {**spread, **ratio, **figures[name]})

    def _failed(self, row: dict[str, Any], name: str, error: Exception) -> None:
        message = str(error) if isinstance(error, timing.ContenderError) else timing.describe(error)
        if "cannot run:" in message:  # the package's own refusal: this path is not for this shape or machine
            self.results.record(row, name, {"not_runnable": message.partition("cannot run: ")[2].partition(";")[0]})
            return
        self.results.fail(row, name, message)
        error.__traceback__ = None  # it would hold the operands
        gc.collect()
        self._require_device()

    def _require_device(self) -> None:
        """Raise ``DeviceLost`` if an error has stayed with the device."""
        if self.device == "cuda":
            try:
                torch.cuda.synchronize()
                torch.cuda.empty_cache()
            except Exception as error:
                raise DeviceLost(timing.describe(error)) from error

    def _clock(self, item: Item) -> timing.CpuClock | timing.CudaClock:
        if self.device == "cpu":
            return timing.CpuClock()
        return timing.CudaClock(flush=self._flushed(item), ahead=not item.few or item.phase != "forward")

    @staticmethod
    def _flushed(item: Item) -> bool:
        return not item.few or item.phase == "graph"

    def _prepare(self, item: Item) -> Operands:
        key = (item.suite, item.channels_last)
        if self._operands is None or self._operands[0] != key:
            self._operands = None  # before the next are made: both may not fit
            self._operands = key, Operands(item.suite, self.device, self.dtype, channels_last=item.channels_last)
        return self._operands[1]

    def _facts(self, item: Item) -> dict[str, Any]:
        s, suite = item.suite.shape, item.suite
        sizes = {"rows": suite.rows, "N": s.N, "m": s.m, "n": s.n, "p": s.p, "q": s.q, "kernel": list(s.kernel)}
        cache = "none" if self.device == "cpu" else "flushed" if self._flushed(item) else "warm"
        limit = suite.limit("train" if item.phase == "train" else "forward")
        kind = "conv2d" if suite.batch else "linear"
        return {"kind": kind, **sizes, "few_rows": item.few, "limit": limit, "l2": cache}

    def _stages_done(self, item: Item) -> list[str]:
        for row in self.results.data["rows"]:
            if (row["shape"], row["phase"]) == (item.name, item.phase):
                return row["stages"]
        return []

    def _plan(self, item: Item, operands: Operands) -> str | None:
        """Path and backend that the planner chooses; linear layers only, for a convolution it may know more."""
        if item.suite.batch:
            return None
        sizes = (item.suite.rows, tuple(operands.S.shape), tuple(operands.T.shape), self.dtype, self.device)
        chosen = weit_kernels.plan(*sizes, needs_grad=item.phase == "train")
        return f"{chosen.path}/{chosen.backend}"


def main() -> int:
    """Measure, and say by the exit status whether a new process should go on."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--deadline", type=float, required=True, help="seconds since the epoch")
    args = parser.parse_args()
    torch.backends.cudnn.benchmark = True  # the dense convolution at its best
    results, dtype = Results.load(args.results), getattr(torch, args.dtype)
    run = Measurement(results, args.device, dtype, args.quick, args.deadline)
    work = list(items(suite_shapes(args.device, args.quick)))
    if args.quick and args.device == "cpu":
        work = [item for item in work if COMPILED not in STAGES[item.stage] or item.suite.name == "square_768"]
    try:
        run.run(work)
    except DeviceLost as lost:
        print(f"device lost: {lost}", flush=True)
        return DEVICE_LOST
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
