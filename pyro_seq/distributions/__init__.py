r"""Distributions over whole sequences."""

from __future__ import annotations

from pyro_seq.distributions.linear_gaussian import LinearGaussianSSM
from pyro_seq.distributions.linear_gaussian_posterior import LinearGaussianPosterior

__all__ = ["LinearGaussianPosterior", "LinearGaussianSSM"]
