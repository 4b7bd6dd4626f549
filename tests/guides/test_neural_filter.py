"""The filter that is a network, against its equations."""

from __future__ import annotations

from typing import Any, NamedTuple

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from torch import Size, Tensor, nn
from torch.distributions import kl_divergence

from pyro_seq.guides import NeuralFilter
from pyro_seq.inference import FilteringELBO
from pyro_seq.inference.filtering import filter_sequences
from pyro_seq.models import StepModel
from tests.guides.unseen_model import Traffic, traffic
from tests.inference.pairs import LinearStep, linear_batch
from tests.models.step_models import BATCH, PIXELS, TIME, data, joint, lstm, make


def guide_of(name: str = "srnn", controls: int = 0, **options: Any) -> NeuralFilter:  # noqa: ANN401
    torch.manual_seed(2)
    return NeuralFilter(make(name, controls=controls), **{"hidden": 4, **options}).double()


def posteriors(guide: NeuralFilter, *sequences: Any, values: Any = None) -> dict[str, Any]:  # noqa: ANN401
    """q of every site, at given values or at the draws of one seed."""
    pyro.set_rng_seed(0)
    run = guide if values is None else poutine.condition(guide, values)
    nodes = poutine.trace(run).get_trace(*sequences).nodes
    return {n: site["fn"] for n, site in nodes.items() if n[-1].isdigit()}


@pytest.mark.parametrize("controls", [0, 2])
@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("reads", [None, ["z"], []])
def test_q_is_what_the_layers_make(controls: int, residual: bool, reads: list[str] | None) -> None:
    guide = guide_of(controls=controls, residual=residual, reads=reads, hidden=[4, 3])
    model, (x, _, u) = guide.model, data(controls=controls)
    draws = guide(x, None, u)
    found = posteriors(guide, x, None, u, values=draws)
    network, head = guide.networks["z"], guide.heads["z"]
    for t in range(TIME):
        state = state_before(model, t, x, u, draws)
        fields = ["h", "z"] if reads is None else reads
        inputs = [x[:, t].flatten(1), *(getattr(state, name) for name in fields)]
        inputs += [] if u is None else [u[:, t]]
        expected = joint(network, *inputs)
        loc, log_scale = head(expected).chunk(2, -1)
        if residual:
            loc = loc + prior_of(model, state, None if u is None else u[:, t]).mean
        q = found[f"z_{t + 1}"]
        torch.testing.assert_close(q.mean, loc)
        torch.testing.assert_close(q.stddev, log_scale.clamp(-7.5, 7.5).exp())


def state_before(
    model: Any,  # noqa: ANN401
    t: int,
    x: Tensor,
    u: Tensor | None,
    draws: dict[str, Tensor],
) -> Any:  # noqa: ANN401
    """The model's visible state after t frames, at given latents, by its own step."""
    state = model.initial_state(Size((BATCH,)))
    for past in range(t):
        with pyro.condition(data={"z": draws[f"z_{past + 1}"]}):
            state = model.step(state, x[:, past], None if u is None else u[:, past])
    return model.visible(state)


def prior_of(model: Any, state: Any, u_t: Tensor | None) -> Any:  # noqa: ANN401
    parts = [state.h, state.z] if u_t is None else [state.h, state.z, u_t]
    return dist.Normal(*model.prior_head.moments(joint(model.prior, *parts)))


def test_later_sites_of_a_step_read_the_earlier_ones() -> None:
    model = Traffic().double()
    guide = NeuralFilter(model, hidden=4).double()
    x, _, u = (part.double() for part in traffic())
    draws = guide(x, None, u)
    base = posteriors(guide, x, None, u, values=draws)
    moved = draws | {"spread_1": draws["spread_1"] + 0.5}
    other = posteriors(guide, x, None, u, values=moved)
    assert torch.equal(base["spread_1"].mean, other["spread_1"].mean)
    for name in ("flow_1", "gain_1"):
        assert not torch.isclose(base[name].mean, other[name].mean).any()
    assert isinstance(base["spread_1"].base_dist, dist.Gamma)
    assert base["gain_1"].event_shape == ()


def test_a_residual_filter_begins_close_to_the_prior() -> None:
    guide = guide_of(residual=True)
    with torch.no_grad():
        for parameter in guide.heads.parameters():
            parameter.zero_()
    x, _, _ = data()
    with poutine.trace() as guided:
        guide(x)
    model = poutine.trace(poutine.replay(guide.model, guided.trace)).get_trace(x)
    for t in range(1, TIME + 1):
        prior, q = (trace.nodes[f"z_{t}"]["fn"] for trace in (model, guided.trace))
        torch.testing.assert_close(q.mean, prior.mean)


@pytest.mark.parametrize(
    ("options", "gain"),
    [({}, 1.0), ({"residual": True}, 0.1), ({"residual": True, "head_gain": 0.5}, 0.5)],
)
def test_the_last_layer_begins_small_where_the_prior_is_near(
    options: dict[str, Any], gain: float
) -> None:
    """Its weights are uniform up to one over the root of its inputs, times the gain."""
    (head,) = guide_of(hidden=100, **options).heads.values()
    assert head.weight.abs().max().item() == pytest.approx(gain / 10, rel=0.1)


def test_an_lstm_of_its_own_reads_all_frames_and_skips_missing_ones() -> None:
    guide = guide_of("dmm", recurrent=3, reads=[])
    x, mask, _ = data("gaps")
    assert mask is not None
    found = posteriors(guide, x, mask)
    clean = x.nan_to_num(0.0).flatten(2)
    h = c = torch.zeros(BATCH, 3).double()
    for t in range(TIME):
        new = lstm(guide.recurrent, clean[:, t], h, c)
        h, c = (torch.where(mask[:, t, None], a, b) for a, b in zip(new, (h, c), strict=True))
        features = nn.functional.elu(guide.networks["z"].shares[0](h))
        loc, _ = guide.heads["z"](guide.networks["z"].rest(features)).chunk(2, -1)
        seen = mask[:, t]
        torch.testing.assert_close(found[f"z_{t + 1}"].mean[seen], loc[seen])
    changed = x.clone()
    changed[0, 1] = 1 - changed[0, 1]
    with torch.no_grad():
        parts = [filter_sequences(guide, s[:, :2], mask[:, :2]).state.guide for s in (x, changed)]
    assert not torch.equal(parts[0][0][0], parts[1][0][0])


def test_an_encoder_reads_frames_of_any_shape() -> None:
    encoder = nn.Sequential(nn.Flatten(2), nn.Linear(PIXELS, 3), nn.Tanh())
    guide = guide_of(encoder=encoder, features=3)
    x, mask, _ = data("gaps")
    assert guide(x, mask)["z_1"].shape == (BATCH, 2)
    assert guide.networks["z"].shares[0].in_features == 3
    FilteringELBO()(guide.model, guide)(x, mask).backward()
    assert encoder[1].weight.grad.abs().sum() > 0
    with pytest.raises(ValueError, match="features must be the size of the encoder's output"):
        guide_of(encoder=encoder)


def test_scales_stay_within_bounds() -> None:
    guide = guide_of()
    with torch.no_grad():
        guide.heads["z"].bias.fill_(1e4)
    found = posteriors(guide, data()[0])["z_1"]
    torch.testing.assert_close(found.stddev, torch.full_like(found.stddev, 7.5).exp())
    assert (found.mean > 5e3).all()


def test_dropout_is_for_training() -> None:
    guide = guide_of(dropout=0.5, hidden=30)
    x, _, _ = data()
    for training in (True, False):
        guide.train(training)
        means = []
        for seed in (0, 1):
            pyro.set_rng_seed(seed)
            means.append(poutine.trace(guide).get_trace(x).nodes["z_1"]["fn"].mean)
        assert torch.equal(*means) != training


def test_linear_layers_can_be_the_exact_local_posterior() -> None:
    """Without hidden layers q is linear in z and x, as p(z_t | z_{t-1}, x_t) is."""
    model = LinearStep(controls=1)
    guide = NeuralFilter(model, hidden=[]).double()
    p = model.parts
    precision = p.q**-2 + (p.C.square() / p.r[:, None] ** 2).sum(0)
    with torch.no_grad():
        frame, rest = guide.networks["z"].shares
        for share in (frame, rest):
            share.weight.zero_()
        frame.weight[:2] = (p.C / p.r[:, None] ** 2).mT / precision[:, None]
        rest.weight[:2] = torch.cat([p.A, p.B], 1) / (p.q**2 * precision)[:, None]
        frame.bias[:2], frame.bias[2:] = 0.0, -0.5 * precision.log()
    x, _, u = linear_batch(model)
    draws = guide(x, None, u)
    for t, (name, q) in enumerate(posteriors(guide, x, None, u, values=draws).items()):
        z = draws[f"z_{t}"] if t else p.start.expand(len(x), -1)
        exact = p.exact(p.ahead(z, u[:, t]), x[:, t])
        assert name == f"z_{t + 1}"
        assert kl_divergence(q, exact).abs().max() < 1e-10


class Boxes(StepModel):
    """A latent whose support moves with its parameters, and a simplex."""

    class State(NamedTuple):
        low: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.width = nn.Parameter(torch.ones(2))

    def initial_state(self, batch_shape: Size) -> State:
        return self.State(self.width.new_zeros(*batch_shape, 2))

    def step(self, state: State, x_t: Tensor | None, u_t: Tensor | None = None) -> State:
        high = state.low + nn.functional.softplus(self.width)
        z = pyro.sample("z", dist.Uniform(state.low, high).to_event(1))
        part = pyro.sample("part", dist.Dirichlet(torch.ones_like(state.low) + z.abs()))
        pyro.sample("x", dist.Normal(z * part, 0.1).to_event(1), obs=x_t)
        return self.State(z)


@pytest.mark.parametrize("residual", [False, True])
def test_other_supports_are_kept(residual: bool) -> None:
    model = Boxes()
    guide = NeuralFilter(model, hidden=4, residual=residual)
    x = torch.rand(6, 3, 2)
    draws = guide(x)
    low = torch.zeros(6, 2)
    for t in range(1, 4):
        assert (draws[f"z_{t}"] > low).all()
        assert (draws[f"z_{t}"] < low + nn.functional.softplus(model.width)).all()
        low = draws[f"z_{t}"]
        torch.testing.assert_close(draws[f"part_{t}"].sum(-1), torch.ones(6))
    assert FilteringELBO()(model, guide)(x).isfinite()


def test_bad_options_are_named() -> None:
    with pytest.raises(ValueError, match=r"reads must name fields of the model's state.*\['m'\]"):
        guide_of(reads=["h", "m"])
