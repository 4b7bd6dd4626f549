r"""Guides :math:`q(z \mid x)`."""

from __future__ import annotations

from pyro_seq.guides.avf import AVF
from pyro_seq.guides.bootstrap import Bootstrap
from pyro_seq.guides.context import Frame, LocalEnergy, StepContext
from pyro_seq.guides.filtering import FilteringGuide, FilterState, Inference, Step
from pyro_seq.guides.kalman import KalmanGuide, KalmanUpdate, Trajectory
from pyro_seq.guides.ladder import LadderGuide
from pyro_seq.guides.neural_filter import NeuralFilter
from pyro_seq.guides.no_latents import NoLatents
from pyro_seq.guides.online import OnlineFilter
from pyro_seq.guides.sites import LatentSite
from pyro_seq.guides.smoother import BackwardSmoother
from pyro_seq.guides.streams import FilterUpdate, OnlineGuide, OnlineState
from pyro_seq.guides.tagger import TaggerGuide
from pyro_seq.guides.vfem import VariationalEM

__all__ = [
    "AVF",
    "BackwardSmoother",
    "Bootstrap",
    "FilterState",
    "FilterUpdate",
    "FilteringGuide",
    "Frame",
    "Inference",
    "KalmanGuide",
    "KalmanUpdate",
    "LadderGuide",
    "LatentSite",
    "LocalEnergy",
    "NeuralFilter",
    "NoLatents",
    "OnlineFilter",
    "OnlineGuide",
    "OnlineState",
    "Step",
    "StepContext",
    "TaggerGuide",
    "Trajectory",
    "VariationalEM",
]
