"""Training of model and guide pairs: the loss as a module, the loop, checkpoints, many processes."""

from pyro_seq.training.callbacks import Callback, Context, Freeze, PlateauWarning, WarnOnPlateau
from pyro_seq.training.fit import FitResult, fit
from pyro_seq.training.loss import LossTotals, SequenceLoss

__all__ = [
    "Callback",
    "Context",
    "FitResult",
    "Freeze",
    "LossTotals",
    "PlateauWarning",
    "SequenceLoss",
    "WarnOnPlateau",
    "fit",
]
