r"""Guides :math:`q(z \mid x)`."""

from __future__ import annotations

from pyro_seq.guides.kalman import FilterUpdate, KalmanGuide, OnlineFilter, Trajectory

__all__ = ["FilterUpdate", "KalmanGuide", "OnlineFilter", "Trajectory"]
