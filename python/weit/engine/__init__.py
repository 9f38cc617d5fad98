"""The training engine: one loop, its data, and what a run leaves on disk."""

from weit.engine.data import Batches, Data, Inputs
from weit.engine.loop import TrainConfig, outputs_of, train
from weit.engine.run_folder import Record, RunFolder

__all__ = ["Batches", "Data", "Inputs", "Record", "RunFolder", "TrainConfig", "outputs_of", "train"]
