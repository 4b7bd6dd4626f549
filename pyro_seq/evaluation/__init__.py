"""Evaluation of model and guide pairs: bounds, imputation, forecasts, ArviZ and plots."""

from __future__ import annotations

from pyro_seq.evaluation.elbo import Bound, elbo, iwae

__all__ = ["Bound", "elbo", "iwae"]
