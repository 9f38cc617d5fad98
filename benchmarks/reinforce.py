"""``python -m benchmarks.reinforce runs/hopper-mlp out.json page.md``: reinforcement learning after a comparison.

The folder is one that ``weit compare --family control`` wrote. Every target is cloned once more from every start, as the
comparison did it and at the rate that it chose, and then goes on by proximal policy optimisation, with the same settings for
all.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from statistics import fmean
from typing import Any

from benchmarks.tables import Table
from weit.by_name import train_dense
from weit.compare import jobs
from weit.compare.config import LONGER
from weit.compare.lines import Job
from weit.compare.pool import Pool
from weit.compare.run import cell_jobs
from weit.compare.summary import spread
from weit.files import atomic_write
from weit.report.html import machine
from weit.report.results import read_results
from weit.tasks.control import Control
from weit.tasks.reinforce import fine_tune

STEPS, POINTS = 100_000, 5

OPENING = """# Reinforcement learning

`python -m benchmarks.reinforce` takes a comparison of policies (`weit compare --family control`), clones every target from
every start as the comparison did, and goes on by proximal policy optimisation (`weit.tasks.reinforce.fine_tune`), with the
same settings for all, none of them chosen by these results. Returns after so many steps of the environment in % of the
expert's, mean ± standard deviation over the seeds, on five episodes each; in the first 8,192 steps a fresh critic learns
alone. The last column is the area under the curve, as a mean return."""


def learn_on(
    folder: Path, paths: dict[str, Path], report: Callable[[float], None], *, reinforce: dict[str, Any], **cell: Any
) -> list[tuple[int, float]]:
    """Clone a cell of a comparison, then reinforce it: steps of the environment, and return as a share of the expert's."""
    task, config, network = jobs.begin_cell(paths, **cell)
    assert isinstance(task, Control)
    train_dense(task, network, config, evaluate=lambda _: {}, progress=False)
    episode = {"context": task.context, "mean": task.mean, "std": task.std}
    curve = fine_tune(network.eval(), task.name, seed=config.seed, **episode, **reinforce)
    return [(point.steps, task.share(point.score)) for point in curve]


def reinforce(
    folder: Path, settings: dict[str, Any], targets: Sequence[str] | None = None, starts: Sequence[str] | None = None
) -> dict[str, Any]:
    """The curves of all seeds, by target and start; ``folder/reinforced`` keeps finished runs.

    Args:
        folder: of the comparison.
        settings: of ``fine_tune``.
        targets, starts: some of the comparison's, under the names that it has for them; all if not given.

    Raises:
        ValueError: a comparison of something else, or without one of ``targets`` or ``starts``.
        OSError: there is no comparison. RuntimeError: a run failed.
    """
    comparison, _ = read_results(folder / "results.json")
    if comparison.config.family != "control":
        raise ValueError(f"{folder} must be a comparison of policies, got the family {comparison.config.family}")
    present = {row.target: [name for name in row.outcomes if name != LONGER] for row in comparison.rows}
    every = sorted({name for names in present.values() for name in names})
    for what, asked, known in (("targets", targets, [*present]), ("starts", starts, every)):
        if unknown := sorted({*(asked or ())} - {*known}):
            raise ValueError(f"{what} must be of {', '.join(known)}, got {', '.join(unknown)}")
    comparison = replace(comparison, config=replace(comparison.config, out=folder))
    with Pool(folder, comparison.config.processes) as pool:
        wanted = {
            (target, start, seed): _reinforced(cell, settings)
            for (target, start, seed), cell in cell_jobs(comparison, pool).items()
            if target in (targets or present) and start in (starts or present[target]) and start != LONGER
        }
        found = dict(zip(wanted, pool.run(list(wanted.values()), "reinforcing"), strict=True))
    curves: dict[str, dict[str, list[Any]]] = {}
    for (target, start, _), curve in found.items():
        curves.setdefault(target, {}).setdefault(start, []).append(curve)
    about = {"data": comparison.data, "model": comparison.model, "cloning steps": comparison.config.steps}
    return {**about, "settings": settings, "machine": machine(), "curves": curves}


def _reinforced(cell: Job, settings: dict[str, Any]) -> Job:
    name, arguments = cell.name.replace("cells", "reinforced", 1), {**cell.arguments, "reinforce": settings}
    # The environment takes the time, whatever the network's size.
    return replace(cell, name=name, function=learn_on, arguments=arguments, work=1.0)


def page(results: dict[str, Any]) -> str:
    """The document: means and standard deviations over the seeds, in % of the expert's return."""
    about, settings = results["machine"], ", ".join(f"{name} {value}" for name, value in results["settings"].items())
    said = (
        f"{results['model']} on {results['data']}, {results['cloning steps']} steps of cloning; {settings}. "
        f"{about['processor']}, torch {about['torch']}."
    )
    rows, steps = [], []
    for target, starts in results["curves"].items():
        for start, curves in starts.items():
            steps = [step for step, _ in curves[0]]
            by_step = zip(*([score for _, score in curve] for curve in curves), strict=True)
            rows.append([target, start.replace("_", " "), *map(_percent, by_step), _percent(list(map(_area, curves)))])
    table = Table("", "", ("target", "start", *(f"{step:,}" for step in steps), "area"), rows)
    return f"{OPENING}\n\n{said}\n\n{table.markdown()}\n"


def _area(curve: Sequence[Sequence[float]]) -> float:
    """Under the curve by trapezoids, over its length."""
    return sum((b[0] - a[0]) * (a[1] + b[1]) / 2 for a, b in pairwise(curve)) / (curve[-1][0] - curve[0][0])


def _percent(scores: Sequence[float]) -> str:
    return f"{100 * fmean(scores):.0f} ± {100 * spread(list(scores)):.0f}"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.reinforce", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("comparison", type=Path, help="folder that weit compare --family control wrote")
    parser.add_argument("out", type=Path, help="JSON file to write")
    parser.add_argument("page", type=Path, nargs="?", help="Markdown file to write")
    parser.add_argument("--targets", nargs="+", help="some of the comparison's; all of them if not given")
    parser.add_argument("--starts", nargs="+", help="such as scratch weit; all of them if not given")
    parser.add_argument("--steps", type=int, default=STEPS, help="steps of the environment")
    given = parser.parse_args(arguments)
    if given.steps < 1:
        parser.error(f"--steps must be at least 1, got {given.steps}")
    settings = {"steps": given.steps, "evaluate_every": max(1, given.steps // POINTS)}
    try:
        results = reinforce(given.comparison, settings, given.targets, given.starts)
    except (ValueError, OSError) as error:
        parser.error(str(error))
    atomic_write(given.out, json.dumps(results, indent=1) + "\n")
    if given.page is not None:
        atomic_write(given.page, page(results))


if __name__ == "__main__":
    main()
