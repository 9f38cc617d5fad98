"""``python -m benchmarks.recipe_costs docs/recipes.md``: predicted memory and time of the recipes for pre-training.

What a model's arguments are follows from the data, which nobody needs to have for a prediction: they are given here.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import yaml

from benchmarks.torchvision_operators import declare
from weit.cli.recipes import recipe_names
from weit.files import atomic_write
from weit.models.sizes import parse_size
from weit.predict import predict
from weit.pretrain import PretrainConfig

IMAGENET = {"img_size": 224, "in_chans": 3, "num_classes": 1000}
LATENTS = {"img_size": 32, "in_chans": 4, "num_classes": 1000}
HOPPER = {"obs_dim": 11, "act_dim": 3, "context": 8}
ARGUMENTS: dict[str, dict[str, Any]] = {"folder": IMAGENET, "latents": LATENTS, "Hopper-v5": HOPPER}
PROCESSES, RATE = 8, 100e12
HEADINGS = (
    "recipe",
    "model",
    "dense",
    "learned",
    "templates",
    "state",
    "an item keeps",
    "a GPU of 8",
    "Tflop a step",
    "steps",
    "hours",
)

OPENING = f"""# Recipes

`weit pretrain --config NAME --root FOLDER --out RUN` runs a recipe, with any flag beside it to change it; on several GPUs
`torchrun --nproc-per-node {PROCESSES} -m weit pretrain ...` ([training.md](training.md)). `--predict` says what the settings
would need. A smaller try is the same file with a smaller `--size`, fewer `--steps` and your own few images. The recipe's
`smaller` sizes are parts of its own `size`, so another `--size` needs a `--smaller` of its own:
`--config deit-small --size embed_dim=192,depth=6,num_heads=3 --smaller embed_dim=192,depth=3,num_heads=3`.

**None of these has been run at its size.** The table is predicted (`python -m benchmarks.recipe_costs`): numbers that
learn and the state (parameters, gradients, AdamW's moments, float32) follow from the shapes; what an item keeps for the
backward pass is counted on models without numbers, in float32; a GPU's memory is the state and its share of the batch with
activations in bfloat16, without workspaces and fragmentation. The hours assume that each of {PROCESSES} GPUs sustains
{RATE / 1e12:g} TFLOP/s, which nobody has measured here, on steps priced like those of dense models."""


def row(name: str, file: Path) -> tuple[str, ...]:
    """What is predicted for one recipe."""
    found = yaml.safe_load(file.read_text())
    of_data = ARGUMENTS[found["data"]]
    fields = {each: found[each] for each in PretrainConfig.__dataclass_fields__ if each in found}
    fields = {
        each: float(value) if each in ("lr", "weight_decay", "warmup") else value for each, value in fields.items()
    }
    spec = {"templates": found["templates"], "template_shape": tuple(found["template_shape"])}
    config = PretrainConfig(**{**fields, "spec": spec})
    model = found.get("model", "dit")
    full, *small = ({**of_data, **parse_size(size)} for size in (found["size"], *found["smaller"]))
    p = predict(model, full, small, config)
    return (
        name, model, f"{p.dense_parameters / 1e6:.1f} M", f"{p.parameters / 1e6:.2f} M", f"{p.templates / 1e6:.2f} M",
        f"{p.state_bytes / 2**20:.0f} MiB", f"{p.saved_bytes / 2**20:.0f} MiB",
        f"{p.peak_bytes(PROCESSES, config) / 2**30:.1f} GiB", f"{p.flops / 1e12:.1f}", f"{p.steps:,}",
        f"{p.hours(RATE, PROCESSES):.2g}",
    )  # fmt: skip


def main(page: Path) -> None:
    """Write ``page``."""
    declare()
    rows = [row(*item) for item in sorted(recipe_names("pretrain").items())]
    lines = ["| " + " | ".join(cells) + " |" for cells in (HEADINGS, ["---"] * len(HEADINGS), *rows)]
    atomic_write(page, OPENING + "\n\n" + "\n".join(lines) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
