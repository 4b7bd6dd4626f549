"""Contracts of the parts of a pair, as functions that a third party can run."""

from pyro_seq.testing.contracts import ContractError, example_mask
from pyro_seq.testing.distributions import (
    DISTRIBUTION_CONTRACTS,
    DistributionCase,
    check_distribution,
)
from pyro_seq.testing.engines import ENGINE_CONTRACTS, EngineCase, check_engine
from pyro_seq.testing.filters import FILTER_CONTRACTS, check_filtering_guide
from pyro_seq.testing.guides import GUIDE_CONTRACTS, GuideCase, check_guide
from pyro_seq.testing.memories import MEMORY_CONTRACTS, MemoryCase, check_memory
from pyro_seq.testing.models import MODEL_CONTRACTS, ModelCase, check_model
from pyro_seq.testing.weights import WEIGHT_CONTRACTS, WeightCase, check_weights

__all__ = [
    "DISTRIBUTION_CONTRACTS",
    "ENGINE_CONTRACTS",
    "FILTER_CONTRACTS",
    "GUIDE_CONTRACTS",
    "MEMORY_CONTRACTS",
    "MODEL_CONTRACTS",
    "WEIGHT_CONTRACTS",
    "ContractError",
    "DistributionCase",
    "EngineCase",
    "GuideCase",
    "MemoryCase",
    "ModelCase",
    "WeightCase",
    "check_distribution",
    "check_engine",
    "check_filtering_guide",
    "check_guide",
    "check_memory",
    "check_model",
    "check_weights",
    "example_mask",
]
