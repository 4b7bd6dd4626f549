"""Training of model and guide pairs: loss, loop, checkpoints, several processes."""

from pyro_seq.training.annealing import AnnealKL, linear, quadratic
from pyro_seq.training.callbacks import Callback, Context, Freeze
from pyro_seq.training.checkpoint import (
    Checkpoint,
    CheckpointError,
    load_checkpoint,
    load_weights,
    save_checkpoint,
)
from pyro_seq.training.distributed import initialise, process_group
from pyro_seq.training.fit import FitResult, fit
from pyro_seq.training.loggers import (
    CSVLogger,
    JSONLinesLogger,
    Logger,
    MemoryLogger,
    TensorBoardLogger,
)
from pyro_seq.training.loss import LossTotals, SequenceLoss
from pyro_seq.training.mean_teacher import MeanTeacher
from pyro_seq.training.plateau import PlateauWarning, WarnOnPlateau
from pyro_seq.training.run import NonFiniteLossError
from pyro_seq.training.schedules import warmup_cosine, warmup_exponential
from pyro_seq.training.step import train_step
from pyro_seq.training.svi import SVI

__all__ = [
    "AnnealKL",
    "CSVLogger",
    "Callback",
    "Checkpoint",
    "CheckpointError",
    "Context",
    "FitResult",
    "Freeze",
    "JSONLinesLogger",
    "Logger",
    "LossTotals",
    "MeanTeacher",
    "MemoryLogger",
    "NonFiniteLossError",
    "PlateauWarning",
    "SVI",
    "SequenceLoss",
    "TensorBoardLogger",
    "WarnOnPlateau",
    "fit",
    "initialise",
    "linear",
    "load_checkpoint",
    "load_weights",
    "process_group",
    "quadratic",
    "save_checkpoint",
    "train_step",
    "warmup_cosine",
    "warmup_exponential",
]
