"""Evaluation of model and guide pairs: bounds, imputation, forecasts, ArviZ and plots."""

from __future__ import annotations

from pyro_seq.evaluation.elbo import Bound, elbo, iwae
from pyro_seq.evaluation.impute import (
    blank_frame,
    copy_last,
    format_table,
    imputation_table,
    impute,
)
from pyro_seq.evaluation.metrics import WrongPixels, hamming, wrong_pixels

__all__ = [
    "Bound",
    "WrongPixels",
    "blank_frame",
    "copy_last",
    "elbo",
    "format_table",
    "hamming",
    "imputation_table",
    "impute",
    "iwae",
    "wrong_pixels",
]
