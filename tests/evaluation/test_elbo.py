from __future__ import annotations

import copy
import math
from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import Trace_ELBO
from pyro.nn import PyroModule, PyroParam
from torch import Tensor, nn

from pyro_seq.data import Batch
from pyro_seq.evaluation import elbo, iwae
from tests.evaluation.pairs import (
    STEPS,
    FactorGuide,
    FactorModel,
    factor_batch,
    kvae_batch,
    kvae_pair,
)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("chunk", [1, 3, 64])
def test_bounds_with_the_exact_posterior_are_the_evidence(masked: bool, chunk: int) -> None:
    model, batch = FactorModel(), factor_batch(masked=masked)
    exact = model.log_evidence(*batch[:2])
    for bound in (
        elbo(model, FactorGuide(model), batch, particles=2, chunk=chunk),
        iwae(model, FactorGuide(model), batch, samples=5, chunk=chunk),
    ):
        torch.testing.assert_close(bound.per_sequence, exact, rtol=0, atol=1e-10)


def test_elbo_is_the_evidence_less_the_divergence() -> None:
    model, batch = FactorModel(), factor_batch()
    guide = FactorGuide(model, shift=0.3, widen=1.5)
    p = model.posterior(*batch[:2])
    q = dist.MultivariateNormal(p.loc + 0.3, scale_tril=1.5 * p.scale_tril)
    expected = model.log_evidence(*batch[:2]) - torch.distributions.kl_divergence(q, p)
    bound = elbo(model, guide, batch, particles=20_000, seed=0, chunk=7 * 2000)
    torch.testing.assert_close(bound.per_sequence, expected.detach(), rtol=0, atol=0.06)
    total = bound.reconstruction - bound.divergence
    torch.testing.assert_close(bound.per_sequence, total)


def test_importance_weighted_bound_climbs_to_the_evidence() -> None:
    model, batch = FactorModel(), factor_batch()
    guide = FactorGuide(model, shift=0.3, widen=1.5)
    exact = model.log_evidence(*batch[:2]).mean()
    means = []
    for samples in (1, 5, 50, 2000):
        runs = 1 if samples > 100 else 40
        values = [
            iwae(model, guide, batch, samples=samples, seed=s, chunk=4096) for s in range(runs)
        ]
        means.append(sum(value.mean for value in values) / runs)
    assert means[0] < means[1] < means[2] < float(exact) + 0.01
    assert means[3] == pytest.approx(float(exact), abs=0.03)
    assert (
        means[0] < float(exact) - 0.3
    )  # the guide is loose enough for the test to mean something


def test_one_importance_sample_is_an_elbo() -> None:
    model, batch = FactorModel(), factor_batch()
    guide = FactorGuide(model, shift=0.2)
    one, other = iwae(model, guide, batch, samples=1, seed=3), elbo(model, guide, batch, seed=3)
    assert torch.equal(one.per_sequence, other.per_sequence)


@pytest.mark.parametrize("estimator", ["closed_form", "joint", "marginal"])
def test_sum_over_sequences_is_that_of_pyro(estimator: str) -> None:
    model, guide = kvae_pair(estimator=estimator)
    batch = kvae_batch()
    bound = elbo(model, guide, batch, seed=11)
    torch.manual_seed(11)
    loss = Trace_ELBO().loss(model.eval(), guide.eval(), *batch)
    assert float(bound.per_sequence.sum()) == pytest.approx(-loss, rel=1e-5)


def test_means_and_standard_errors_by_hand() -> None:
    model, batch = FactorModel(), factor_batch()
    bound = elbo(model, FactorGuide(model), batch)
    value, steps = bound.per_sequence, batch.mask.sum(1).double()
    assert torch.equal(bound.steps, steps)
    n = len(value)
    assert bound.mean == pytest.approx(float(value.sum() / n))
    assert bound.standard_error == pytest.approx(
        math.sqrt(float(((value - bound.mean) ** 2).sum()) / (n - 1) / n)
    )
    assert bound.per_step == pytest.approx(float(value.sum() / steps.sum()))
    assert bound.summary() == {
        "elbo_per_sequence": bound.mean,
        "elbo_per_sequence_se": bound.standard_error,
        "elbo_per_frame": bound.per_step,
        "elbo_per_frame_se": bound.per_step_standard_error,
    }


def test_standard_error_per_step_is_that_of_a_ratio() -> None:
    model, batch = FactorModel(), factor_batch(masked=False)
    bound = elbo(model, FactorGuide(model), batch)
    assert bound.per_step_standard_error == pytest.approx(bound.standard_error / STEPS)
    doubled = bound._replace(steps=torch.arange(1.0, 8.0), per_sequence=3 * torch.arange(1.0, 8.0))
    assert doubled.per_step_standard_error == pytest.approx(0.0, abs=1e-12)
    single = elbo(model, FactorGuide(model), batch.x[:1])
    assert math.isnan(single.standard_error)


@pytest.mark.parametrize("fill", [0.0, 1e6, float("nan")])
def test_hidden_frames_change_nothing(fill: float) -> None:
    model, guide = kvae_pair()
    batch = kvae_batch()
    other = batch._replace(x=torch.where(batch.mask[..., None, None, None], batch.x, fill))
    one, two = elbo(model, guide, batch, seed=0), elbo(model, guide, other, seed=0)
    assert torch.equal(one.per_sequence, two.per_sequence)


def test_whole_numbers_are_frames_too() -> None:
    model, guide = kvae_pair()
    batch = kvae_batch()
    one = elbo(model, guide, batch, seed=0)
    assert torch.equal(
        elbo(model, guide, batch._replace(x=batch.x.byte()), seed=0).per_sequence, one.per_sequence
    )


def test_seed_repeats_and_leaves_the_random_state_alone() -> None:
    model, guide = kvae_pair()
    batch = kvae_batch()
    before = torch.get_rng_state()
    first = elbo(model, guide, batch, seed=1)
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(3)
    assert torch.equal(elbo(model, guide, batch, seed=1).per_sequence, first.per_sequence)
    assert not torch.equal(elbo(model, guide, batch, seed=2).per_sequence, first.per_sequence)


class NormalisedGuide(PyroModule):
    def __init__(self, track: bool = True) -> None:
        super().__init__("normalised_guide")
        self.norm = nn.BatchNorm1d(3, track_running_stats=track).double()
        self.drop = nn.Dropout(0.5)
        self.drop.eval()

    def forward(
        self, x: Tensor, mask: Tensor | None = None, controls: Tensor | None = None
    ) -> dict[str, Tensor]:
        loc = self.drop(self.norm(x[:, 0]))[:, :2]
        with pyro.plate("sequences", x.shape[0], dim=-1):
            return {"z": pyro.sample("z", dist.Normal(loc, 0.3).to_event(1))}


def test_modules_are_in_evaluation_mode_and_come_back() -> None:
    model, guide = FactorModel(), NormalisedGuide()
    x = factor_batch(masked=False).x
    before = copy.deepcopy(guide.state_dict())
    first = elbo(model, guide, x, seed=0)
    assert torch.equal(elbo(model, guide.eval(), x, seed=0).per_sequence, first.per_sequence)
    guide.train()
    guide.drop.eval()
    elbo(model, guide, x)
    assert guide.norm.training and not guide.drop.training and model.training
    assert all(torch.equal(value, before[name]) for name, value in guide.state_dict().items())
    with pytest.raises(RuntimeError):
        elbo(model, guide, x[..., :2])
    assert guide.norm.training


def test_batch_statistics_are_warned_about() -> None:
    with pytest.warns(UserWarning, match="BatchNorm1d without running statistics"):
        elbo(FactorModel(), NormalisedGuide(track=False), factor_batch(masked=False).x)


class ScaledGuide(PyroModule):
    def __init__(self) -> None:
        super().__init__("scaled_guide")
        self.scale = PyroParam(
            torch.full((1,), 0.5, dtype=torch.float64), dist.constraints.positive
        )

    def forward(
        self, x: Tensor, mask: Tensor | None = None, controls: Tensor | None = None
    ) -> dict[str, Tensor]:
        with pyro.plate("sequences", x.shape[0], dim=-1):
            return {"z": pyro.sample("z", dist.Normal(x.new_zeros(2), self.scale).to_event(1))}


@pytest.mark.parametrize("local", [False, True])
def test_each_copy_is_evaluated_with_its_own_parameters(local: bool) -> None:
    x = factor_batch(masked=False).x
    with pyro.settings.context(module_local_params=local):
        model, guide = FactorModel(), ScaledGuide()
        other = copy.deepcopy(guide)
        other.scale = torch.full((1,), 5.0, dtype=torch.float64)
        Trace_ELBO().loss(model, guide, x)  # puts the first one's values into the global store
        stored = set(pyro.get_param_store().keys())
        assert local == (len(stored) == 0)
        values = [elbo(model, g, x, seed=0).mean for g in (guide, other, guide)]
        assert set(pyro.get_param_store().keys()) == stored
    assert values[0] == values[2] != values[1]
    assert float(other.scale.detach()) == pytest.approx(5.0)


def test_parameters_of_the_global_store_are_used() -> None:
    class Stored(PyroModule):
        def forward(self, x: Tensor, *rest: object) -> dict[str, Tensor]:
            loc = pyro.param("loc", torch.zeros(2, dtype=torch.float64))
            with pyro.plate("sequences", x.shape[0], dim=-1):
                return {"z": pyro.sample("z", dist.Normal(loc, 0.5).to_event(1))}

    x, model, guide = factor_batch(masked=False).x, FactorModel(), Stored("stored")
    before = elbo(model, guide, x, seed=0).mean
    Trace_ELBO().loss(model, guide, x)
    pyro.get_param_store()["loc"] = torch.full((2,), 3.0, dtype=torch.float64)
    assert elbo(model, guide, x, seed=0).mean != before


class OddModel(PyroModule):
    """A model with something wrong."""

    def __init__(self, fault: str) -> None:
        super().__init__(f"odd_{fault}")
        self.fault = fault

    def forward(
        self, x: Tensor, mask: Tensor | None = None, controls: Tensor | None = None
    ) -> None:
        zero = x.new_zeros(2)
        if self.fault == "shared":
            pyro.sample("w", dist.Normal(0.0, 1.0))
        with pyro.plate("sequences", x.shape[0], dim=-1):
            with poutine.scale(scale=0.3 if self.fault == "scaled" else 1.0):
                z = pyro.sample("z", dist.Normal(zero, 1.0).to_event(1))
            if self.fault == "unmatched":
                pyro.sample("y", dist.Normal(zero, 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z.sum(-1)[:, None, None], 1.0).to_event(2), obs=x)


class OddGuide(PyroModule):
    def __init__(self, fault: str) -> None:
        super().__init__(f"odd_guide_{fault}")
        self.fault = fault

    def forward(
        self, x: Tensor, mask: Tensor | None = None, controls: Tensor | None = None
    ) -> None:
        if self.fault == "shared":
            pyro.sample("w", dist.Normal(0.0, 1.0))
        with pyro.plate("sequences", x.shape[0], dim=-1):
            pyro.sample("z", dist.Normal(x.new_zeros(2), 1.0).to_event(1))


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("scaled", "'z' is scaled: a weighted objective is no bound"),
        ("unmatched", r"\['y'\] are in only one"),
        ("shared", "'w' must have one log density per sequence"),
    ],
)
def test_what_is_no_bound_is_refused(fault: str, message: str) -> None:
    x = factor_batch(masked=False).x
    with pytest.raises(ValueError, match=message):
        elbo(OddModel(fault), OddGuide(fault), x)


def test_a_pair_in_the_wrong_order_is_refused() -> None:
    model, guide = kvae_pair()
    for bound in (elbo, partial(iwae, samples=2)):
        with pytest.raises(ValueError, match="Are model and guide in each other's place"):
            bound(guide, model, kvae_batch())


def test_frames_of_another_kind_are_named() -> None:
    with pytest.raises(TypeError, match="frames in a tensor .* got ndarray. Use torch.as_tensor"):
        elbo(*kvae_pair(), kvae_batch().x.numpy())


def test_steps_inside_a_plate_are_summed() -> None:
    """Sites with one log density per step and sequence, (time, batch), count as sequences."""

    class Stepwise(OddModel):
        def forward(self, x: Tensor, *rest: object) -> None:
            with pyro.plate("sequences", x.shape[0], dim=-1):
                z = pyro.sample("z", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
                with pyro.plate("time", x.shape[1], dim=-2):
                    step = dist.Normal(z.sum(-1)[:, None], 1.0).expand([*x.shape[:2][::-1], 3])
                    pyro.sample("x", step.to_event(1), obs=x.transpose(0, 1))

    x = factor_batch(masked=False).x
    guide = OddGuide("none")
    one, two = (elbo(m, guide, x, seed=0) for m in (OddModel("none"), Stepwise("stepwise")))
    torch.testing.assert_close(one.per_sequence, two.per_sequence)


def test_numbers_must_be_positive() -> None:
    model = FactorModel()
    with pytest.raises(ValueError, match="samples"):
        iwae(model, FactorGuide(model), Batch(factor_batch().x), samples=0)
    with pytest.raises(ValueError, match="chunk"):
        elbo(model, FactorGuide(model), Batch(factor_batch().x), chunk=0)
