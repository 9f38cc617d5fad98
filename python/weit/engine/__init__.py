"""The training engine: one loop, its data, and what a run leaves on disk."""

from weit.engine.data import Batches, Data
from weit.engine.loop import TrainConfig, logits_of, train
from weit.engine.run_folder import Record, RunFolder

__all__ = ["Batches", "Data", "Record", "RunFolder", "TrainConfig", "logits_of", "train"]
