"""A pool without processes, and what a miniature comparison has."""

import json

from weit.compare.lines import Book
from weit.models.sizes import training_flops
from weit.tasks import load_task

TARGETS = ["16x1", "32x2"]


class Here:
    """A pool that runs jobs where it is, in the order of a real one with one worker.

    Attributes:
        ran: name -> the job and its result, in the order in which they ran.
        work: what the last call said that all jobs cost.
    """

    def __init__(self, out):
        self.out, self.ran, self.work = out, {}, 0.0

    def follow(self, lines, title, work=0.0):
        self.work, book = work, Book(self.out, lines)
        while book.advance():
            job = self.next_job(book.waiting)
            if job.name not in self.ran:
                result = job.function(self.out / job.name, job.paths, lambda share: None, **job.arguments)
                self.ran[job.name] = job, json.loads(json.dumps(result))
            book.finish(job, self.ran[job.name][1])
        return book.returned

    def next_job(self, waiting):
        return waiting.pop()[1]


def flops(target):
    width, depth = map(int, target.split("x"))
    return training_flops("vit", load_task("digits").arguments("vit", {"width": width, "depth": depth}))
