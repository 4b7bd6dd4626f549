"""Data: batches and masks, simulators, loaders. Needs no other part of the package but the registry."""

from __future__ import annotations

from pyro_seq.data.simulators import ENVIRONMENTS, Environment, Simulation, simulate

__all__ = ["ENVIRONMENTS", "Environment", "Simulation", "simulate"]
