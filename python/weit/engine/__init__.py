"""The training engine: one loop, its data, and what a run leaves on disk."""

from weit.engine.config import TrainConfig
from weit.engine.data import Batches, Data, Inputs
from weit.engine.loop import train
from weit.engine.objective import outputs_of
from weit.engine.processes import is_main_process
from weit.engine.run_folder import Record, RunFolder

__all__ = ["Batches", "Data", "Inputs", "Record", "RunFolder", "TrainConfig", "is_main_process", "outputs_of", "train"]
