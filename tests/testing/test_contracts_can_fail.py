"""Each contract passes on a sound part and fails, by name, on a part with one fault."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.distributions import TorchDistribution, constraints
from torch import Tensor, nn

from pyro_seq.nn import MLPWeights, WeightNetwork
from pyro_seq.testing import (
    DISTRIBUTION_CONTRACTS,
    GUIDE_CONTRACTS,
    MODEL_CONTRACTS,
    WEIGHT_CONTRACTS,
    ContractError,
    check_distribution,
    check_guide,
    check_model,
    check_weights,
    example_mask,
)
from pyro_seq.testing.contracts import assert_close
from tests.testing.toys import ToyGuide, ToyModel

MODEL_FAULTS = {
    "no events": "log_density_of_each_sequence",
    "unobserved": "log_density_of_each_sequence",
    "couples": "sequences_are_independent",
    "product": "masked_frames_change_nothing",
    "scores missing": "missing_frames_have_no_likelihood",
    "mask shifts": "a_full_mask_changes_nothing",
    "scalar parameter": "no_parameter_is_0_dimensional",
    "fixed name": "two_models_share_no_parameter",
    "needs gradients": "predictive_draws_samples",
    "float32": "float64_stays_float64",
    "hidden constant": "copies_agree",
}
GUIDE_FAULTS = {
    "returns a tensor": "returns_its_samples_by_site",
    "extra site": "returns_its_samples_by_site",
    "wrong shape": "returns_its_samples_by_site",
    "hidden state": "same_seed_same_sample",
    "infinite": "elbo_is_finite_per_sequence",
    "couples": "sequences_are_independent",
    "product": "masked_frames_change_nothing",
    "unused parameter": "every_parameter_gets_a_gradient",
    "detached": "every_parameter_gets_a_gradient",
    "scalar parameter": "every_parameter_gets_a_gradient",
    "fixed name": "svi_trains_two_pairs_independently",
    "needs gradients": "predictive_uses_the_guide",
    "hidden constant": "copies_agree",
}


@pytest.fixture
def x() -> Tensor:
    return torch.randn(3, 4, 2)


def test_a_sound_model_passes(x: Tensor) -> None:
    check_model(ToyModel, x)
    check_model(ToyModel, x, example_mask(3, 4), torch.zeros(3, 4, 1))


def test_a_sound_guide_passes(x: Tensor) -> None:
    check_guide(ToyModel, ToyGuide, x)
    check_guide(ToyModel, ToyGuide, x, example_mask(3, 4), torch.zeros(3, 4, 1))


@pytest.mark.parametrize(("fault", "contract"), MODEL_FAULTS.items(), ids=list(MODEL_FAULTS))
def test_a_faulty_model_fails(x: Tensor, fault: str, contract: str) -> None:
    with pytest.raises(ContractError, match=f"The model breaks the contract '{contract}'"):
        check_model(lambda: ToyModel(fault=fault), x)


@pytest.mark.parametrize(("fault", "contract"), GUIDE_FAULTS.items(), ids=list(GUIDE_FAULTS))
def test_a_faulty_guide_fails(x: Tensor, fault: str, contract: str) -> None:
    with pytest.raises(ContractError, match=f"The guide breaks the contract '{contract}'"):
        check_guide(lambda: ToyModel(fault=fault), lambda model: ToyGuide(model, fault), x)


def test_short_data_is_refused() -> None:
    for shape in ((1, 4, 2), (4, 1, 2), (4,)):
        with pytest.raises(ValueError, match="at least two sequences of at least two steps"):
            check_model(ToyModel, torch.zeros(shape))


def test_checks_leave_seed_store_and_settings_alone(x: Tensor) -> None:
    pyro.param("mine", torch.ones(1))
    before = torch.get_rng_state()
    check_guide(ToyModel, ToyGuide, x)
    assert torch.equal(torch.get_rng_state(), before)
    assert list(pyro.get_param_store().keys()) == ["mine"]
    assert not pyro.settings.get("module_local_params")


@pytest.mark.parametrize(("batch", "time"), [(1, 2), (2, 2), (3, 4), (9, 5)])
def test_example_mask_has_holes_and_observations_in_every_row(batch: int, time: int) -> None:
    mask = example_mask(batch, time)
    assert mask.any(1).all() and not mask.all(1).any()


def test_nan_is_never_close() -> None:
    with pytest.raises(ContractError, match="value: differs by nan"):
        assert_close(torch.tensor([float("nan")]), torch.zeros(1), "value")


class ToyDistribution(TorchDistribution):
    """Independent normal coordinates, event shape (n,), with one fault."""

    arg_constraints: dict[str, Any] = {}
    support = constraints.real_vector
    has_rsample = True

    def __init__(self, loc: Tensor, scale: Tensor, fault: str = "") -> None:
        self.loc, self.scale, self.fault = loc, scale, fault
        self.unpicklable = (lambda: None) if fault == "unpicklable" else None
        super().__init__(loc.shape[:-1], loc.shape[-1:])

    def expand(self, batch_shape: torch.Size, _instance: object = None) -> TorchDistribution:
        shape = (*batch_shape, *self.event_shape)
        if self.fault == "expand":
            return dist.Normal(self.loc.expand(shape), self.scale.expand(shape)).to_event(1)
        return ToyDistribution(self.loc.expand(shape), self.scale.expand(shape), self.fault)

    def rsample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:  # noqa: B008
        noise = torch.randn((*sample_shape, *self.loc.shape), dtype=self.loc.dtype)
        if self.fault == "sampler":
            noise = 1.3 * noise
        if self.fault == "dtype":
            noise = noise.double()
        return self.loc + self.scale * noise

    def sample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:  # noqa: B008
        drawn = self.rsample(sample_shape)
        return drawn if self.fault == "sample gradient" else drawn.detach()

    def __call__(self, sample_shape: torch.Size = torch.Size()) -> Tensor:  # noqa: B008
        if self.fault == "call":
            return torch.zeros(7)
        return super().__call__(sample_shape)

    def log_prob(self, value: Tensor) -> Tensor:
        if self.fault == "accepts any shape":
            value = value[..., : self.loc.shape[-1]]
        self._validate_sample(value)
        loc = self.loc.detach() if self.fault == "no gradient" else self.loc
        density = dist.Normal(loc, self.scale).log_prob(value)
        if self.fault == "event shape":
            return density
        density = density.sum(-1)
        if self.fault == "couples samples" and density.dim() > len(self.batch_shape):
            density = density + value.mean()
        if self.fault == "couples batch":
            density = density + value.sum((-1, -2)).unsqueeze(-1)
        return density


DISTRIBUTION_FAULTS = {
    "sample gradient": "shapes_follow_torch",
    "event shape": "shapes_follow_torch",
    "couples samples": "samples_are_scored_one_by_one",
    "couples batch": "batch_elements_are_independent",
    "expand": "expand_repeats",
    "no gradient": "gradients_reach_every_parameter",
    "sampler": "samples_agree_with_the_density",
    "dtype": "dtype_follows_the_parameters",
    "unpicklable": "copies_agree",
    "accepts any shape": "wrong_event_shapes_are_refused",
    "call": "works_as_a_sample_site",
}


def parameters() -> tuple[Tensor, Tensor]:
    return torch.randn(3, 2), torch.rand(3, 2) + 0.5


@pytest.mark.parametrize(
    "make",
    [
        ToyDistribution,
        dist.Normal,
        lambda loc, scale: dist.Normal(loc, scale).to_event(1),
        lambda loc, scale: dist.Gamma(loc.exp(), scale),
        lambda loc, scale: dist.MultivariateNormal(loc, torch.diag_embed(scale)),
        lambda loc, scale: dist.GaussianHMM(
            dist.Normal(loc, scale).to_event(1),
            torch.eye(2).to(loc),
            dist.Normal(loc.unsqueeze(-2), scale.unsqueeze(-2)).to_event(1),
            torch.eye(2).to(loc),
            dist.Normal(loc.unsqueeze(-2), scale.unsqueeze(-2)).to_event(1),
            duration=3,
        ),
    ],
    ids=["toy", "normal", "normal vectors", "gamma", "multivariate", "hidden Markov"],
)
def test_sound_distributions_pass(make: Callable[..., TorchDistribution]) -> None:
    check_distribution(make, parameters())


@pytest.mark.parametrize(
    ("fault", "contract"), DISTRIBUTION_FAULTS.items(), ids=list(DISTRIBUTION_FAULTS)
)
def test_faulty_distributions_fail(fault: str, contract: str) -> None:
    with pytest.raises(ContractError, match=f"breaks the contract '{contract}'"):
        check_distribution(partial(ToyDistribution, fault=fault), parameters())


class ToyWeights(WeightNetwork):
    """Weights of the last code and the sum of those before, with one fault."""

    def __init__(self, obs: int, modes: int, fault: str = "") -> None:
        super().__init__()
        self.fault, self.calls = fault, 0
        self.reads_codes = fault != "denies reading"
        self.last, self.sum = nn.Linear(obs, modes), nn.Linear(obs, modes)
        if fault == "unused parameter":
            self.unused = nn.Parameter(torch.ones(2))
        self.scale = nn.Parameter(torch.ones(() if fault == "scalar parameter" else (1,)))

    def _weigh(self, last: Tensor, total: Tensor) -> Tensor:
        if self.fault == "couples":
            total = total - total.mean(0)
        if self.fault == "blind":
            last, total = torch.zeros_like(last), torch.zeros_like(total)
        logits = self.scale * (self.last(last) + self.sum(total))
        if self.fault == "logits":
            return logits
        if self.fault == "hidden state" and self.calls > 2:
            logits = 2 * logits
        weights = logits.softmax(-1)
        return weights.float() if self.fault == "float32" else weights

    def initial_state(self, batch: int) -> tuple[Tensor]:
        self.calls += 1
        return (self.last.weight.new_zeros(batch, self.last.in_features),)

    def step(self, previous: Tensor, state: tuple[Tensor]) -> tuple[Tensor, tuple[Tensor]]:
        after = (state[0] + previous,)
        total = state[0] if self.fault == "steps lag" else after[0]
        return self._weigh(previous, total), after

    def unroll(self, previous: Tensor) -> Tensor:
        self.calls += 1
        return self._weigh(previous, previous.cumsum(1))


WEIGHT_FAULTS = {
    "logits": "weights_are_on_the_simplex",
    "steps lag": "steps_agree_with_unroll",
    "couples": "sequences_have_their_own_weights",
    "hidden state": "nothing_is_remembered",
    "denies reading": "reads_codes_is_true",
    "blind": "reads_codes_is_true",
    "unused parameter": "every_weight_parameter_is_trained",
    "scalar parameter": "every_weight_parameter_is_trained",
    "float32": "double_weights_stay_double",
}


def test_sound_weights_pass() -> None:
    check_weights(ToyWeights)
    check_weights(partial(MLPWeights, window=3), obs=1, modes=2)


@pytest.mark.parametrize(("fault", "contract"), WEIGHT_FAULTS.items(), ids=list(WEIGHT_FAULTS))
def test_faulty_weights_fail(fault: str, contract: str) -> None:
    with pytest.raises(ContractError, match=f"The weight network breaks .* '{contract}'"):
        check_weights(partial(ToyWeights, fault=fault))


def test_weights_of_another_kind_fail() -> None:
    with pytest.raises(ContractError, match="expected a pyro_seq.nn.WeightNetwork, got Linear"):
        check_weights(nn.Linear)  # type: ignore[arg-type]


def test_every_contract_has_a_part_that_breaks_it() -> None:
    faults = (MODEL_FAULTS, GUIDE_FAULTS, DISTRIBUTION_FAULTS, WEIGHT_FAULTS)
    contracts = MODEL_CONTRACTS, GUIDE_CONTRACTS, DISTRIBUTION_CONTRACTS, WEIGHT_CONTRACTS
    stated = {contract.__name__ for group in contracts for contract in group}
    assert stated == {name for group in faults for name in group.values()}
