"""Evaluation of model and guide pairs: bounds, imputation, forecasts, ArviZ and plots."""

from __future__ import annotations

from pyro_seq.evaluation.arviz import compare, plot_compare, to_arviz
from pyro_seq.evaluation.bound import Bound, Estimate
from pyro_seq.evaluation.draws import Draws, posterior_draws
from pyro_seq.evaluation.elbo import elbo, fivo, iwae
from pyro_seq.evaluation.forecast import Forecast, forecast
from pyro_seq.evaluation.free_energy import FreeEnergy, free_energy
from pyro_seq.evaluation.grouping import (
    GroupScores,
    adjusted_mutual_information,
    adjusted_rand_index,
    score_groups,
)
from pyro_seq.evaluation.grouping_baselines import score_baselines
from pyro_seq.evaluation.impute import (
    blank_frame,
    copy_last,
    format_table,
    imputation_table,
    impute,
)
from pyro_seq.evaluation.metrics import WrongPixels, hamming, mean_square, wrong_pixels

__all__ = [
    "Bound",
    "Draws",
    "Estimate",
    "Forecast",
    "FreeEnergy",
    "GroupScores",
    "WrongPixels",
    "adjusted_mutual_information",
    "adjusted_rand_index",
    "blank_frame",
    "compare",
    "copy_last",
    "elbo",
    "fivo",
    "forecast",
    "format_table",
    "free_energy",
    "hamming",
    "imputation_table",
    "impute",
    "iwae",
    "mean_square",
    "plot_compare",
    "posterior_draws",
    "score_baselines",
    "score_groups",
    "to_arviz",
    "wrong_pixels",
]
