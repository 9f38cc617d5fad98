"""``python -m benchmarks.reinforce runs/hopper-mlp out.json page.md``: reinforcement learning from a comparison's starts.

The folder is one that ``weit compare --family control`` wrote: its targets, its seeds, its bank's starts, and the models
that its rivals take from. Every policy goes on with the same proximal policy optimisation; none has been cloned further.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from weit.by_name import build
from weit.compare.pool import Job, Pool, default_workers
from weit.files import atomic_write
from weit.models import load_model
from weit.models.sizes import parse_size
from weit.report.html import machine
from weit.report.results import read_results
from weit.rivals import RIVALS
from weit.tasks import load_task
from weit.tasks.control import Control
from weit.tasks.reinforce import fine_tune

STARTS = {"scratch": None, "weight_selection": "source", "bert2bert": "small", "weit": "starts"}
"""Who starts, and the folder that holds what it starts from."""
STEPS, POINTS = 120_000, 6


def learn(
    folder: Path,
    paths: dict[str, Path],
    report: Callable[[float], None],
    *,
    data: str,
    model: str,
    target: str,
    start: str,
    seed: int,
    settings: dict[str, Any],
) -> list[tuple[int, float]]:
    """The learning curve of one policy: steps of the environment, and return in shares of the expert's."""
    task = load_task(data, paths.get("root"), family="control")
    assert isinstance(task, Control)
    network = _start(task, model, target, start, seed, paths.get("from"))
    episode = {"context": task.context, "mean": task.mean, "std": task.std}
    curve = fine_tune(network, task.name, seed=seed, **episode, **settings)
    random, expert = (each(1000) for each in (task.recording.random_return, task.recording.expert_return))
    return [(point.steps, (point.score - random) / (expert - random)) for point in curve]


def _start(task: Control, model: str, target: str, start: str, seed: int, origin: Path | None) -> nn.Module:
    if start == "weit":
        assert origin is not None
        return load_model(origin)[0]
    fresh = build(task, model, parse_size(target), seed)
    source = None if origin is None else load_model(origin)[0]
    return RIVALS[start](fresh, source, seed=seed)


def compare(folder: Path, out: Path, settings: dict[str, Any], targets: Sequence[str] | None = None) -> dict[str, Any]:
    """All curves, by target and start; jobs that ``out`` holds are not run again. ``targets``: some of them."""
    found, _ = read_results(folder / "results.json")
    if found.config.family != "control":
        raise ValueError(f"{folder} must be a comparison of policies, got the family {found.config.family}")
    if unknown := sorted({*(targets or ())} - {*found.config.targets}):
        raise ValueError(f"targets must be of {', '.join(found.config.targets)}, got {', '.join(unknown)}")
    targets, jobs = targets or found.config.targets, {}
    for target in targets:
        for start, kind in STARTS.items():
            for seed in range(found.config.seeds):
                name = f"starts/{target}-seed{seed}" if kind == "starts" else kind
                paths = {} if name is None else {"from": folder / name}
                paths |= {} if found.config.root is None else {"root": found.config.root}
                arguments = {"data": found.data, "model": found.model, "target": target, "start": start}
                arguments |= {"seed": seed, "settings": settings}
                jobs[target, start, seed] = Job(f"{target}-{start}-seed{seed}", learn, arguments, paths)
    with Pool(out, default_workers()) as pool:
        curves = dict(zip(jobs, pool.run(list(jobs.values()), "learning"), strict=True))
    by_pair = {
        target: {start: [curves[target, start, seed] for seed in range(found.config.seeds)] for start in STARTS}
        for target in targets
    }
    return {"data": found.data, "model": found.model, "settings": settings, "machine": machine(), "curves": by_pair}


def page(results: dict[str, Any]) -> str:
    """The curves as a table of means and standard deviations over the seeds, in % of the expert's return."""
    rows, steps = [], None
    for target, starts in results["curves"].items():
        for start, curves in starts.items():
            steps = [point[0] for point in curves[0]]
            at = [[curve[i][1] for curve in curves] for i in range(len(steps))]
            rows.append([target, start.replace("_", " "), *map(_spread, at), _spread(list(map(_mean_of, curves)))])
    assert steps is not None
    head = ["target", "start", *(f"{step:,}" for step in steps), "mean of the curve"]
    lines = [head, ["---", "---", *["--:"] * (len(steps) + 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _mean_of(curve: Sequence[Sequence[float]]) -> float:
    return statistics.mean(score for _, score in curve)


def _spread(scores: list[float]) -> str:
    deviation = f" ± {100 * statistics.stdev(scores):.0f}" if len(scores) > 1 else ""
    return f"{100 * statistics.mean(scores):.0f}{deviation}"


OPENING = """# Reinforcement learning

`python -m benchmarks.reinforce` takes a comparison of policies (`weit compare --family control`), and goes on from its
starts, before any of them was cloned at its own size, by proximal policy optimisation (`weit.tasks.reinforce.fine_tune`, the
same settings for all). Returns after so many steps of the environment in % of the expert's, mean ± standard deviation over
the seeds, on five episodes each; in the first steps a fresh critic learns alone."""


def write(results: dict[str, Any], out: Path, document: Path | None) -> None:
    """Keep the results, and a page about them."""
    atomic_write(out, json.dumps(results, indent=1) + "\n")
    if document is not None:
        about = results["machine"]
        said = f"{results['model']} on {results['data']}; {about['processor']}, torch {about['torch']}."
        atomic_write(document, f"{OPENING}\n\n{said}\n\n{page(results)}\n")


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.reinforce", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("comparison", type=Path, help="folder that weit compare --family control wrote")
    parser.add_argument("out", type=Path, help="JSON file to write; a folder of its name keeps finished runs")
    parser.add_argument("page", type=Path, nargs="?", help="Markdown file to write")
    parser.add_argument("--targets", nargs="+", help="some of the comparison's; all of them if not given")
    parser.add_argument("--steps", type=int, default=STEPS, help="of the environment")
    parser.add_argument("--lr", type=float, default=1e-4)
    given = parser.parse_args(arguments)
    settings = {"steps": given.steps, "evaluate_every": max(1, given.steps // POINTS), "lr": given.lr}
    try:
        results = compare(given.comparison, given.out.with_suffix(""), settings, given.targets)
    except (ValueError, OSError, RuntimeError) as error:
        parser.error(str(error))
    write(results, given.out, given.page)


if __name__ == "__main__":
    main()
