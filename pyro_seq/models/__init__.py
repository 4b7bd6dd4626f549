r"""Generative models :math:`p(x, z)`: one file, one model, one equation."""

from __future__ import annotations

from pyro_seq.models.auxiliary import auxiliary
from pyro_seq.models.dmm import DMM
from pyro_seq.models.engine_tasks import EngineTasks, Foretold
from pyro_seq.models.group_mixture import GroupMixtureModel
from pyro_seq.models.gtmm import GTMM
from pyro_seq.models.hierarchical import HierarchicalTemporalModel
from pyro_seq.models.kvae import KVAE
from pyro_seq.models.mixture_ssm import MixtureSSM
from pyro_seq.models.presets import Presets
from pyro_seq.models.srnn import SRNN
from pyro_seq.models.step_model import SplitState, SplitStepModel, StepModel
from pyro_seq.models.svg import SVG
from pyro_seq.models.vrnn import VRNN

__all__ = [
    "DMM",
    "EngineTasks",
    "Foretold",
    "GTMM",
    "GroupMixtureModel",
    "HierarchicalTemporalModel",
    "KVAE",
    "MixtureSSM",
    "Presets",
    "SRNN",
    "SVG",
    "SplitState",
    "SplitStepModel",
    "StepModel",
    "VRNN",
    "auxiliary",
]
