r"""Distributions: over whole sequences, and of data that come in steps."""

from __future__ import annotations

from pyro_seq.distributions.discretized_normal import DiscretizedNormal, window_log_density
from pyro_seq.distributions.group_mixture import GroupMixture
from pyro_seq.distributions.linear_gaussian import LinearGaussianSSM
from pyro_seq.distributions.linear_gaussian_posterior import LinearGaussianPosterior

__all__ = [
    "DiscretizedNormal",
    "GroupMixture",
    "LinearGaussianPosterior",
    "LinearGaussianSSM",
    "window_log_density",
]
