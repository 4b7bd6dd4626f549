"""Data: batches and masks, simulators and loaders."""

from __future__ import annotations

from pyro_seq.data.simulators import ENVIRONMENTS, Environment, Simulation, simulate

__all__ = ["ENVIRONMENTS", "Environment", "Simulation", "simulate"]
