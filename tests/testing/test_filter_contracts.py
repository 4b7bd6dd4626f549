"""Each contract of filtering guides passes on a sound pair and fails on one with one fault."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from pyro_seq.models import DMM
from pyro_seq.testing import (
    FILTER_CONTRACTS,
    ContractError,
    GuideCase,
    ModelCase,
    check_filtering_guide,
    example_mask,
)
from pyro_seq.testing.contracts import run_contracts
from tests.testing.step_toys import ToyFilter, ToyStepModel
from tests.testing.toys import ToyGuide, ToyModel

FAULTS = {
    "infinite": "each_step_has_finite_terms",
    "float32": "float64_terms_stay_float64",
    "stock only": "one_pass_equals_stock_objectives",
    "raw frames": "masked_frames_change_no_term",
    "detached": "gradients_reach_both",
    "unused parameter": "gradients_reach_both",
    "ascends": "training_lowers_the_free_energy",
    "unannounced": "svi_trains_with_one_pass",
    "guide keeps": "a_step_leaves_no_trace",
    "model keeps": "a_step_leaves_no_trace",
    "in place": "each_step_has_finite_terms",
    "looks ahead": "online_equals_the_whole_sequence",
}


@pytest.fixture
def x() -> Tensor:
    return 3 * torch.randn(3, 4, 2)


def test_a_sound_filter_passes(x: Tensor) -> None:
    check_filtering_guide(ToyStepModel, ToyFilter, x)


@pytest.mark.parametrize(("fault", "contract"), FAULTS.items(), ids=[*FAULTS])
def test_a_faulty_filter_fails(x: Tensor, fault: str, contract: str) -> None:
    model = ModelCase(lambda: ToyStepModel(fault), x, example_mask(3, 4), None)
    case = GuideCase(model, lambda model: ToyFilter(model, fault))
    with pytest.raises(ContractError, match=f"The guide breaks the contract '{contract}'"):
        run_contracts(FILTER_CONTRACTS, case, "The guide")


def test_every_contract_has_a_pair_that_breaks_it() -> None:
    assert {contract.__name__ for contract in FILTER_CONTRACTS} == set(FAULTS.values())


def test_other_guides_are_refused(x: Tensor) -> None:
    with pytest.raises(ContractError, match="expected a pyro_seq.guides.FilteringGuide, got Toy"):
        check_filtering_guide(ToyModel, ToyGuide, x)
    other, x = DMM(2, latent=1), x.sigmoid()
    with pytest.raises(ContractError, match="guide.model is not the model it was made for"):
        check_filtering_guide(lambda: DMM(2, latent=1), lambda model: ToyFilter(other), x)
