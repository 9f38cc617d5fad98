"""What models are trained on: data, loss and metric, one file a family."""

from weit.tasks.classification import Task, load_task

__all__ = ["Task", "load_task"]
