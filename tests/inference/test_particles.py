from __future__ import annotations

import math
from typing import NamedTuple

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Size, Tensor
from torch.autograd import grad

from pyro_seq.data import Batch
from pyro_seq.guides import AVF, Bootstrap, NeuralFilter
from pyro_seq.guides.context import StepContext
from pyro_seq.guides.filtering import FilteringGuide, Inference
from pyro_seq.inference import FIVO, IWAE, FilteringELBO
from pyro_seq.inference.filtering import StepELBO
from pyro_seq.inference.particles import filter_particles
from pyro_seq.models import SRNN
from pyro_seq.models.step_model import StepModel
from pyro_seq.ops.resampling import ancestors
from tests.inference.pairs import ExactFilter, LinearStep, SplitLinearStep, State, linear_batch

MODELS = {"free": LinearStep, "split": SplitLinearStep}


def value_and_gradient(
    elbo: StepELBO, model: StepModel, guide: FilteringGuide, batch: Batch, seed: int = 0
) -> tuple[Tensor, tuple[Tensor, ...]]:
    torch.manual_seed(seed)
    loss = elbo.differentiable_loss(model, guide, *batch)
    known = [p for m in (model, guide) for p in m.parameters() if p.requires_grad and p.numel()]
    return loss.detach(), grad(loss, known, allow_unused=True, materialize_grads=True)


def srnn_pair(guide: str) -> tuple[SRNN, NeuralFilter | AVF]:
    torch.manual_seed(0)
    model = SRNN(3, latent=2, hidden=3, prior=[4], decoder=[4], emission="normal").double()
    made = {"filter": NeuralFilter, "avf": AVF}[guide](
        model, **({"hidden": 4} if guide == "filter" else {"hidden": [4], "iterations": 2})
    )
    return model, made.double()


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("guide", ["filter", "avf"])
def test_one_particle_is_the_bound_with_sampled_divergences(guide: str, masked: bool) -> None:
    batch = linear_batch(LinearStep(), masked=masked)
    pair = srnn_pair(guide)
    expected = value_and_gradient(FilteringELBO(analytic=False), *pair, batch)
    for bound in (IWAE(1), FIVO(1)):
        torch.testing.assert_close(value_and_gradient(bound, *pair, batch), expected)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("kind", ["free", "split", "srnn", "srnn avf"])
def test_without_resampling_it_is_the_importance_weighted_bound(kind: str, masked: bool) -> None:
    if kind in MODELS:
        model = MODELS[kind]()
        pair = model, ExactFilter(model, 0.4, 1.5)
    else:
        pair = srnn_pair("avf" if "avf" in kind else "filter")
    batch = linear_batch(LinearStep(), masked=masked)
    expected = value_and_gradient(IWAE(5), *pair, batch)
    found = value_and_gradient(FIVO(5, resample_below=0), *pair, batch)
    torch.testing.assert_close(found, expected)
    resampled = value_and_gradient(FIVO(5, resample_below=1), *pair, batch)
    assert not torch.isclose(resampled[0], expected[0])


@pytest.mark.parametrize("kind", ["free", "split"])
@pytest.mark.parametrize("masked", [False, True])
def test_bounds_climb_to_the_exact_evidence(kind: str, masked: bool) -> None:
    model = MODELS[kind](controls=1)
    guide = ExactFilter(model, 0.5, 1.6)
    batch, runs = linear_batch(model, masked=masked), 40
    exact = float(model.parts.evidence(batch).log_prob(torch.nan_to_num(batch.x)).sum().detach())
    x, u = (part.repeat(runs, 1, 1) for part in (batch.x, batch.controls))
    mask = None if batch.mask is None else batch.mask.repeat(runs, 1)
    means = []
    with torch.no_grad():
        for particles in (1, 4, 32):
            means.append(-IWAE(particles).loss(model, guide, x, mask, u) / runs)
        assert means[0] < means[1] < means[2] < exact
        assert means[0] < exact - 5  # loose enough for the test to mean something
        for bound in (IWAE(10_000), FIVO(3000), FIVO(3000, scheme="multinomial")):
            assert -bound.loss(model, guide, *batch) == pytest.approx(exact, abs=0.3)


def test_resampling_holds_where_weights_alone_degenerate() -> None:
    model = SplitLinearStep()
    guide, batch = Bootstrap(model), linear_batch(model, time=60)
    exact = float(model.parts.evidence(batch).log_prob(batch.x).sum().detach())
    with torch.no_grad():
        plain, resampled = (-b.loss(model, guide, *batch) for b in (IWAE(300), FIVO(300)))
    assert plain < exact - 100 < exact - 8 < resampled < exact + 8


@pytest.mark.parametrize("scheme", ["systematic", "multinomial"])
def test_the_estimate_of_the_evidence_is_unbiased(scheme: str) -> None:
    """Its exponential has the evidence as its mean, with few particles, always resampled."""
    model = LinearStep(noise=1.5)
    batch = linear_batch(model, sequences=1, time=3)
    copies = 40_000
    x = batch.x.expand(copies, -1, -1)
    exact = model.parts.evidence(batch).log_prob(batch.x).detach()
    with torch.no_grad():
        found = filter_particles(
            Bootstrap(model), x, particles=3, resample_below=1.0, scheme=scheme
        ).log_evidence
    ratio = (found - exact).exp()
    error = float(ratio.std()) / math.sqrt(copies)
    assert error < 0.02
    assert abs(float(ratio.mean()) - 1) < 4 * error


def test_weighted_particles_have_the_moments_of_the_kalman_filter() -> None:
    model = SplitLinearStep(controls=2)
    batch = linear_batch(model, masked=True)
    exact = model.parts.evidence(batch).posterior(torch.nan_to_num(batch.x)).smoothed
    with torch.no_grad():
        found = filter_particles(Bootstrap(model), *batch, particles=20_000)
    weights = found.log_weights.exp()
    torch.testing.assert_close(weights.sum(0), torch.ones(6).double())
    mean = torch.einsum("pb,pbz->bz", weights, found.terms.state.model.state.z)
    torch.testing.assert_close(mean, exact.loc[:, -1].detach(), rtol=0, atol=0.05)


def test_value_and_gradient_are_those_of_a_filter_written_by_hand() -> None:
    """One sequence after the other, one particle after the other."""
    model = LinearStep()
    guide = ExactFilter(model, 0.4, 1.5)
    batch = linear_batch(model, sequences=3, masked=True)
    count, below = 4, 0.9
    found = value_and_gradient(FIVO(count, below), model, guide, batch)
    torch.manual_seed(0)
    p, total, resamplings = model.parts, torch.zeros(()).double(), 0
    z = p.start.expand(count, 3, -1)
    weights = torch.full((count, 3), 1 / count).double()
    for t in range(5):
        x, seen = torch.nan_to_num(batch.x[:, t]), batch.mask[:, t]
        prior = dist.Normal(p.ahead(z, None), p.q)
        exact = p.exact(prior.mean, x)
        q = dist.Normal(exact.mean + guide.shift, exact.stddev * guide.stretch)
        new, other = prior.rsample(), q.rsample()  # a masked mixture draws both, in this order
        z = torch.where(seen[:, None], other, new)
        gain = (dist.Normal(z @ p.C.mT, p.r).log_prob(x)).sum(-1)
        gain = gain + prior.log_prob(z).sum(-1) - q.log_prob(z).sum(-1)
        rows, columns = [], []
        uniform = torch.rand(1, 3, dtype=torch.float64)
        for b in range(3):
            w = weights[:, b] * (gain[:, b].exp() if seen[b] else 1)
            total = total - w.sum().log()
            w, picked = w / w.sum(), list(range(count))
            if seen[b] and 1 / float(w.detach().square().sum()) < below * count:
                resamplings += 1
                edges = w.detach().cumsum(0).tolist()
                points = [(i + float(uniform[0, b])) / count for i in range(count)]
                picked = [next(j for j, e in enumerate(edges) if e > point) for point in points]
                w = torch.full((count,), 1 / count).double()
            columns.append(w)
            rows.append(z[picked, b])
        z, weights = torch.stack(rows, 1), torch.stack(columns, 1)
    assert 0 < resamplings < 12
    known = [q for m in (model, guide) for q in m.parameters() if q.numel()]
    torch.testing.assert_close(found[0], total.detach())
    torch.testing.assert_close(found[1], grad(total, known))


class Walk(StepModel):
    """Remembers the path that it took."""

    class State(NamedTuple):
        path: Tensor
        number: Tensor

    def initial_state(self, batch_shape: Size) -> Walk.State:
        zero = torch.zeros(*batch_shape, 5).double()
        return self.State(zero, torch.zeros(batch_shape, dtype=torch.long))

    def step(self, state: Walk.State, x_t: Tensor | None, u_t: Tensor | None = None) -> Walk.State:
        last = state.path[..., -1:]
        z = pyro.sample("z", dist.Normal(last, 1.0).to_event(1))
        pyro.sample("x", dist.Normal(z, 0.3).to_event(1), obs=x_t)
        return self.State(torch.cat([state.path[..., 1:], z], -1), state.number + 1)


class Follower(FilteringGuide):
    """Keeps the model's path in its own state too, one step late."""

    def initial_state(self, batch_shape: Size) -> Tensor:
        return torch.zeros(*batch_shape, 5).double()

    def infer(self, context: StepContext, state: Tensor) -> Inference:
        latest = context.visible.path[..., -1:]
        return Inference(lambda site: site.prior, torch.cat([state[..., 1:], latest], -1))


def test_a_particle_takes_its_whole_state_along() -> None:
    model = Walk()
    guide = Follower(model)
    x = torch.randn(3, 9, 1).double().cumsum(1)
    state = filter_particles(guide, x, particles=7, resample_below=1.0).terms.state
    torch.testing.assert_close(state.guide[..., 1:], state.model.path[..., :-1])
    assert (state.model.number == 9).all()
    assert len(state.model.path[:, 0, 0].unique()) < 7  # they have common ancestors


def test_padding_weighs_nothing_and_resamples_nothing() -> None:
    model = SplitLinearStep()
    guide, batch = ExactFilter(model, 0.4, 1.5), linear_batch(model)
    mask = torch.ones(6, 5, dtype=torch.bool)
    mask[:, 3:] = False
    hidden = torch.where(mask[..., None], batch.x, torch.nan)
    for below in (0.9, 1.0):
        torch.manual_seed(1)
        short = filter_particles(
            guide, batch.x[:, :3], mask[:, :3], particles=6, resample_below=below
        )
        torch.manual_seed(1)
        long = filter_particles(guide, hidden, mask, particles=6, resample_below=below)
        torch.testing.assert_close(long.log_evidence, short.log_evidence)
        torch.testing.assert_close(long.log_weights, short.log_weights)
        assert (long.terms.log_likelihood[3:] == 0).all()
        assert (long.terms.divergence[3:] == 0).all()


def test_ancestors_have_their_expected_numbers() -> None:
    weights = torch.tensor([[0.5, 0.0, 0.1], [0.3, 1.0, 0.1], [0.2, 0.0, 0.8]]).double()
    log_weights = weights.log()[:, None].expand(3, 4000, 3).reshape(3, -1)
    for scheme in ("systematic", "multinomial"):
        index = ancestors(log_weights + 5.0, scheme)
        counts = torch.stack([(index == i).sum(0) for i in range(3)]).view(3, 4000, 3).double()
        assert (counts[weights.expand(4000, 3, 3).transpose(0, 1) == 0] == 0).all()
        error = (counts.mean(1) - 3 * weights).abs().max()
        assert error < 5 * math.sqrt(3 / 4 / 4000)
        exact = (counts - 3 * weights[:, None]).abs() < 1
        assert bool(exact.all()) == (scheme == "systematic")


def test_wrong_arguments_are_named() -> None:
    model = LinearStep()
    with pytest.raises(ValueError, match="num_particles must be at least 1; got 0"):
        IWAE(0)
    with pytest.raises(ValueError, match="resample_below must be a fraction"):
        FIVO(4, 1.5)
    with pytest.raises(ValueError, match="scheme must be one of systematic, multinomial"):
        FIVO(4, scheme="stratified")
    with pytest.raises(ValueError, match="scheme must be one of"):
        filter_particles(Bootstrap(model), torch.zeros(1, 1, 3), particles=2, scheme="no")
    for bound in (IWAE(2), FIVO(2)):
        with pytest.raises(ValueError, match="it was made for another one"):
            bound.loss(LinearStep(), Bootstrap(model), torch.zeros(1, 1, 3).double())

    class Shared(LinearStep):
        def initial_state(self, batch_shape: Size) -> State:
            return State(self.parts.start)

        def step(self, state: State, x_t: Tensor | None, u_t: Tensor | None = None) -> State:
            super().step(state, x_t, u_t)
            return State(self.parts.start)

    model = Shared()
    with pytest.raises(ValueError, match="must begin with the batch shape, .* got shape"):
        FIVO(4).loss(model, Bootstrap(model), torch.zeros(2, 2, 3).double())
