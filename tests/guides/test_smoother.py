"""The smoother that runs backward over the sequence."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import Trace_ELBO, TraceMeanField_ELBO
from torch import Size, Tensor, nn

from pyro_seq.guides import BackwardSmoother
from pyro_seq.inference import FilteringELBO
from pyro_seq.inference.filtering import filter_sequences
from pyro_seq.models import StepModel
from tests.models.step_models import BATCH, FRAME, TIME, data, make


def smoother(name: str = "srnn", controls: int = 0, **options: Any) -> BackwardSmoother:  # noqa: ANN401
    torch.manual_seed(2)
    model = make(name, controls=controls)
    return BackwardSmoother(model, **{"units": 3, "hidden": 4, **options}).double()


def posteriors(guide: BackwardSmoother, *args: Any) -> list[Any]:  # noqa: ANN401
    """q of every step, at the draws of one seed."""
    pyro.set_rng_seed(0)
    trace = poutine.trace(guide).get_trace(*args)
    return [trace.nodes[f"z_{t}"]["fn"] for t in range(1, TIME + 1)]


@pytest.mark.parametrize("masked", ["none", "padding", "gaps"])
def test_a_is_what_a_loop_makes(masked: str) -> None:
    """A cell that runs backward and stays as it is where a frame is missing."""
    guide = smoother(controls=2)
    x, mask, controls = data(masked, controls=2)
    clean = x.nan_to_num(0.0)
    seen = torch.ones(BATCH, TIME, dtype=torch.bool) if mask is None else mask
    network = guide.backward_network
    cell = nn.GRUCell(network.input_size, network.hidden_size).double()
    cell.load_state_dict({n.removesuffix("_l0"): p for n, p in network.state_dict().items()})
    inputs = torch.cat([clean.flatten(2), controls], -1)
    a, steps = torch.zeros(BATCH, 3).double(), []
    for t in reversed(range(TIME)):
        a = torch.where(seen[:, t, None], cell(inputs[:, t], a), a)
        steps.insert(0, a)
    expected = guide.posterior.encode(torch.stack(steps, 1), mask, controls)
    torch.testing.assert_close(guide.encode(clean, mask, controls), expected)


def test_q_depends_on_later_frames_and_not_on_earlier_ones() -> None:
    """Given z_{t-1} and the frames from t on."""
    guide = smoother("dmm")
    x, _, _ = data()
    draws = guide(x)
    base = poutine.condition(guide, draws)
    for changed in range(TIME):
        other = x.clone()
        other[:, changed] = 1 - other[:, changed]
        for t, (old, new) in enumerate(
            zip(posteriors(base, x), posteriors(base, other), strict=True)
        ):
            assert torch.allclose(old.mean, new.mean) == (t > changed), (changed, t)


def test_the_prior_stands_where_nothing_is_observed_any_more() -> None:
    guide = smoother()
    x, mask, _ = data("gaps")
    assert mask is not None
    rows = torch.arange(BATCH)
    assert guide.informed(mask)[rows, 0].all()
    last = [max(t for t in range(TIME) if mask[row, t]) for row in range(BATCH)]
    expected = torch.tensor([[t <= end for t in range(TIME)] for end in last])
    assert torch.equal(guide.informed(mask), expected)
    terms = filter_sequences(guide, x, mask)
    assert torch.equal(terms.divergence.T != 0, expected)
    assert (terms.log_likelihood.T[~mask] == 0).all()


@pytest.mark.parametrize("masked", ["none", "gaps"])
@pytest.mark.parametrize("name", ["srnn", "vrnn", "svg"])
def test_bounds_agree(name: str, masked: str) -> None:
    """In one pass and with stock Pyro, with the model's own embedding; value and gradient."""
    guide = smoother(name, residual=True, embedding=True)
    x, mask, _ = data(masked)
    parameters = [*guide.model.parameters(), *guide.parameters()]
    for analytic, stock in ((False, Trace_ELBO()), (True, TraceMeanField_ELBO())):
        results = []
        for elbo in (FilteringELBO(analytic=analytic), stock):
            pyro.set_rng_seed(1)
            loss = elbo.differentiable_loss(guide.model, guide, x, mask)
            results.append([loss, *torch.autograd.grad(loss, parameters)])
        for found, expected in zip(*results, strict=True):
            torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


def test_what_lies_under_the_mask_changes_nothing() -> None:
    guide = smoother(embedding=True)
    x, mask, _ = data("gaps")
    results = []
    for fill in (0.0, 1e3, float("nan")):
        pyro.set_rng_seed(1)
        loss = FilteringELBO().differentiable_loss(guide.model, guide, x.nan_to_num(fill), mask)
        results.append([loss, *torch.autograd.grad(loss, [*guide.parameters()])])
    for other in results[1:]:
        for found, expected in zip(other, results[0], strict=True):
            assert torch.equal(found, expected)


def test_d_is_the_state_that_the_model_has() -> None:
    """Moved by one step: at step t it holds the frames before t."""
    guide = smoother(embedding=["h"])
    x, _, _ = data()
    read: list[Tensor] = []
    guide.backward_network.register_forward_hook(lambda _, inputs, __: read.append(inputs[0]))
    guide.encode(x, None, None)
    found = read[0].flip(1)[..., FRAME[1] * FRAME[2] :]
    assert (found[:, 0] == 0).all()
    for t in range(1, TIME):
        state = filter_sequences(guide, x[:, :t]).state.model
        torch.testing.assert_close(found[:, t], guide.model.visible(state).h)


def test_residual_begins_at_the_prior() -> None:
    guide = smoother(residual=True, reads=["z"])
    with torch.no_grad():
        for parameter in guide.posterior.heads.parameters():
            parameter.zero_()
    x, _, _ = data()
    with poutine.trace() as guided:
        guide(x)
    model = poutine.trace(poutine.replay(guide.model, guided.trace)).get_trace(x)
    for t in range(1, TIME + 1):
        prior, q = (trace.nodes[f"z_{t}"]["fn"] for trace in (model, guided.trace))
        torch.testing.assert_close(q.mean, prior.mean)
        torch.testing.assert_close(q.stddev, torch.ones_like(q.stddev))


def test_all_steps_at_once_where_q_reads_no_latent() -> None:
    """The same bound as step by step, here with hardly any noise in q."""
    guide = smoother(reads=["h"])
    assert guide.parallel and not smoother(reads=["z"]).parallel
    with torch.no_grad():
        guide.posterior.heads["z"].bias[2:] = -7.5
        guide.posterior.heads["z"].weight[2:] = 0
    x, _, _ = data()
    at_once = filter_sequences(guide, x)
    one_by_one = filter_sequences(guide, x, torch.ones(BATCH, TIME, dtype=torch.bool))
    torch.testing.assert_close(at_once.divergence, one_by_one.divergence, rtol=1e-2, atol=1e-2)
    torch.testing.assert_close(
        at_once.log_likelihood, one_by_one.log_likelihood, rtol=1e-2, atol=1e-2
    )


class Walk(StepModel):
    """A number that begins anywhere, moves little and is seen through little noise."""

    class State(NamedTuple):
        z: Tensor
        spread: Tensor

    def initial_state(self, batch_shape: Size) -> State:
        zeros = torch.zeros(*batch_shape, 1)
        return self.State(zeros, zeros + 1.0)

    def step(self, state: State, x_t: Tensor | None, u_t: Tensor | None = None) -> State:
        z = pyro.sample("z", dist.Normal(state.z, state.spread).to_event(1))
        pyro.sample("x", dist.Normal(z, 0.3).to_event(1), obs=x_t)
        return self.State(z, torch.full_like(z, 0.3))


def test_a_smoother_comes_closer_to_the_evidence_than_any_filter_can() -> None:
    """Two steps, the first frame missing: a filter leaves z_1 at its prior, 4.6 nats away."""
    model = Walk()
    x = model.generate(batch=256, time=2)
    mask = torch.tensor([False, True]).expand(256, 2)
    variance = 1 + 2 * 0.3**2
    evidence = dist.Normal(0.0, variance**0.5).log_prob(x[:, 1, 0])
    left = 1 - 1 / variance  # variance of z_1 given the second frame
    best_filter = 0.5 * (math.log(left) + (2 - left) / left - 1)
    assert best_filter == pytest.approx(4.6, abs=0.1)
    guide = BackwardSmoother(model, units=4, hidden=8, residual=True)
    optimizer = torch.optim.Adam(guide.parameters(), 0.03)
    with pyro.validation_enabled(False):
        for _ in range(50):
            optimizer.zero_grad()
            FilteringELBO()(model, guide)(x, mask).backward()
            optimizer.step()
        with torch.no_grad():
            energy = torch.stack([FilteringELBO()(model, guide)(x, mask) for _ in range(20)])
    gap = (energy.mean() + evidence.sum()) / len(x)
    assert 0 < gap < 0.25 * best_filter


def test_bad_options_are_refused() -> None:
    with pytest.raises(ValueError, match="embedding needs a model in parts that reads frames"):
        smoother("dmm", embedding=True)
    with pytest.raises(ValueError, match=r"embedding must name fields.*'h', 'prior'.*got \['c'\]"):
        smoother("srnn", embedding=["c"])
    with pytest.raises(ValueError, match=r"embedding must name fields of the model's, none"):
        smoother("vrnn", embedding=["h"])
    with pytest.raises(ValueError, match="reads must name fields of the model's state"):
        smoother(reads=["c"])
    with pytest.raises(ValueError, match="features must be the size of the encoder's output"):
        smoother(encoder=nn.Identity())
    assert not smoother().online
