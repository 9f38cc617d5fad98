"""A pool without processes, and what a miniature comparison has."""

import json

from weit.models.sizes import training_flops
from weit.tasks import load_task

TARGETS = ["16x1", "32x2"]


class Here:
    """A pool that runs jobs where it is; ``ran``: name -> the job and its result."""

    def __init__(self, out):
        self.out, self.ran = out, {}

    def run(self, jobs, title):
        for job in jobs:
            if job.name not in self.ran:
                result = job.function(self.out / job.name, job.paths, lambda share: None, **job.arguments)
                self.ran[job.name] = job, json.loads(json.dumps(result))
        return [self.ran[job.name][1] for job in jobs]


def flops(target):
    width, depth = map(int, target.split("x"))
    return training_flops("vit", load_task("digits").arguments("vit", {"width": width, "depth": depth}))
