r"""Generative models :math:`p(x, z)`: one file, one model, one equation."""

from __future__ import annotations

from pyro_seq.models.kvae import KVAE
from pyro_seq.models.mixture_ssm import MixtureSSM

__all__ = ["KVAE", "MixtureSSM"]
