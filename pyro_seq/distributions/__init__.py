r"""Distributions over whole sequences."""

from __future__ import annotations

from pyro_seq.distributions.linear_gaussian import LinearGaussianPosterior, LinearGaussianSSM

__all__ = ["LinearGaussianPosterior", "LinearGaussianSSM"]
