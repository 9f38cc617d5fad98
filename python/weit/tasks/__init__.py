"""What models are trained on: data, loss and metric, one file a family."""

from weit.tasks.families import FAMILIES, load_task
from weit.tasks.task import Metric, Size, Task

__all__ = ["FAMILIES", "Metric", "Size", "Task", "load_task"]
