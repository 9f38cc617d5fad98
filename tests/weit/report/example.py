"""A comparison made up for the tests."""

from pathlib import Path

from weit.compare import CompareConfig, Comparison
from weit.compare.summary import summarize
from weit.tasks import Metric

ACCURACY = Metric("accuracy", "accuracy, %", scale=100.0, digits=1)


def example(rivals=("scratch_longer", "weight_selection"), pretraining=0.6e12):
    """Three targets, on which WeiT is ahead of scratch, level with it and behind it."""
    ends = {  # for each target and start: accuracy in the middle and at the end, for two seeds
        "64x3": {"scratch": (0.5, 0.8, 0.8), "weight_selection": (0.3, 0.4, 0.4), "weit": (0.85, 0.905, 0.915)},
        "32x6": {"scratch": (0.5, 0.80, 0.84), "weight_selection": (0.3, 0.9, 0.9), "weit": (0.7, 0.80, 0.85)},
        "96x8": {"scratch": (0.5, 0.9, 0.9), "weight_selection": (0.3, 0.8, 0.8), "weit": (0.7, 0.8, 0.8)},
    }
    rows = []
    for target, starts in ends.items():
        starts = {**starts, "scratch_longer": starts["scratch"]}
        cells = {}
        for name in ("scratch", *rivals, "weit"):
            middle, *finals = starts[name]
            begin = 0.5 if name == "weit" else 0.1
            results = [
                {"curve": [[0, begin], [20, middle], [40, end]], "test": {"accuracy": end}, "parameters": 1234}
                for end in finals
            ]
            lr = {"scratch": 0.008, "scratch_longer": 0.008}.get(name, 0.004)
            cells[name] = (lr, 1e-3 if name == "weit" else None), results
        extra = {name: {"weit": 45.0, "weight_selection": 90.0}.get(name, 0.0) for name in cells}
        rows.append(summarize(target, "some <change>", 5 * 10**9, cells, extra, (ACCURACY,)))
    config = CompareConfig(
        out=Path("out"), targets=list(ends), rivals=list(rivals),
        lrs=[0.002, 0.004, 0.008], seeds=2, steps=40, evaluate_every=20,
    )  # fmt: skip
    flops = {"weit": pretraining, "scratch": 0.0}
    seconds = {"bank": 8.0, "fitting": 3.0}
    return Comparison(config, "digits", "vit", (ACCURACY,), rows, flops, {"width": 64, "depth": 6}, seconds)
