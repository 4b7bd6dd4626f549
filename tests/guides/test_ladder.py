"""The ladder guide: exact where messages are, sound everywhere."""

from __future__ import annotations

from typing import Any, NamedTuple

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import SVI, Trace_ELBO
from torch import Size, Tensor, nn

from pyro_seq.engines import ConvRow, LinearRow, LSTMRow, PoolRow, RLadder
from pyro_seq.guides import LadderGuide
from pyro_seq.inference import FilteringELBO
from pyro_seq.inference.filtering import filter_sequences
from pyro_seq.inference.message_passing import (
    Beliefs,
    GaussianChain,
    elbo,
    log_evidence,
    mean_field,
    upward_messages,
)
from pyro_seq.models import HierarchicalTemporalModel, StepModel
from pyro_seq.nn import GaussianLadderCell
from tests.inference.test_message_passing import golden
from tests.models.test_hierarchical import FRAME, evidence, linear


class Static(StepModel):
    """The model of Appendix B, one frame long: z, y, x and the corrupted x."""

    class State(NamedTuple):
        nothing: Tensor

    def __init__(self, chain: GaussianChain) -> None:
        super().__init__()
        self.chain = chain

    def initial_state(self, batch_shape: Size) -> State:
        return self.State(torch.zeros(batch_shape, dtype=torch.float64))

    def step(self, state: State, x_t: Tensor | None, u_t: Tensor | None = None) -> State:
        weights, variances, offsets = self.chain
        scales = variances.sqrt()
        value = torch.zeros_like(state.nothing)
        for level in reversed(range(3)):
            above = weights[level + 1] * value if level < 2 else 0.0
            prior = dist.Normal(offsets[level] + above + 0 * value, scales[level + 1])
            value = pyro.sample("xyz"[level] + "_", prior)
        pyro.sample("x", dist.Normal(weights[0] * value, scales[0]), obs=x_t)
        return state


class Copy(nn.Module):
    """An engine whose decoder is the frame itself at every level."""

    class Output(NamedTuple):
        d: tuple[Tensor, ...]

    def __init__(self, levels: int = 3) -> None:
        super().__init__()
        self.frame_shape, self.levels = Size((1,)), levels
        self.unused = nn.Parameter(torch.zeros(1, dtype=torch.float64))

    def initial_state(self, batch_shape: Size) -> tuple[()]:
        return ()

    def step(self, state: tuple[()], x_t: Tensor) -> tuple[Output, tuple[()]]:
        return self.Output((x_t,) * self.levels), state


def marginalised(model: Static, chain: GaussianChain) -> LadderGuide:
    """A ladder guide whose messages have the latents between integrated out."""
    guide = LadderGuide(model, Copy(), hidden=2, combine="precision").double()
    one = upward_messages(chain, torch.ones((), dtype=torch.float64))
    zero = upward_messages(chain, torch.zeros((), dtype=torch.float64))
    high = 1e3  # an ELU is the identity there
    with torch.no_grad():
        for parameter in guide.parameters():
            parameter.zero_()
        for level, name in enumerate(("x_", "y_", "z_")):
            network, message = guide.networks[name], guide.messages[name].message
            network.shares[0].weight[0] = 1.0
            network.shares[0].bias[0] = high
            slope = one.loc[level] - zero.loc[level]
            message.weight[0, 0] = slope
            message.bias[0] = zero.loc[level] - slope * high
            message.bias[1] = one.precision[level].log()
    return guide


def test_marginalised_messages_reach_the_evidence_with_every_draw() -> None:
    chain, x = golden()
    model = Static(chain)
    guide = marginalised(model, chain)
    with torch.no_grad():
        terms = filter_sequences(guide, x.view(1, 1), particles=500, analytic=False)
    bounds = -terms.free_energy
    assert bounds.mean().item() == pytest.approx(-1.9681562, abs=1e-7)
    assert bounds.std() < 1e-9
    torch.testing.assert_close(bounds, log_evidence(chain, x).expand(1, 500, 1))


def test_mean_field_reaches_its_own_bound_alone() -> None:
    chain, x = golden()
    model, copies = Static(chain), 32
    pyro.set_rng_seed(0)

    def guide(x: Tensor) -> None:
        with pyro.plate("sequences", copies, dim=-1):
            for name in ("z_", "y_", "x_"):
                loc = pyro.param(f"{name}loc", torch.zeros(1).double())
                log_scale = pyro.param(f"{name}log_scale", torch.zeros(1).double())
                pyro.sample(f"{name}_1", dist.Normal(loc.expand(copies), log_scale.exp()))

    steps = 250
    optimizer = pyro.optim.ClippedAdam({"lr": 0.05, "lrd": 0.02 ** (1 / steps)})
    svi = SVI(model, guide, optimizer, Trace_ELBO())
    for _ in range(steps):
        svi.step(x.expand(copies, 1))
    loc, log_scale = (
        torch.cat([pyro.param(f"{name}_{kind}").detach() for name in "xyz"])
        for kind in ("loc", "log_scale")
    )
    reached = elbo(chain, x, Beliefs(loc, log_scale.mul(2).exp())).item()
    assert reached == pytest.approx(-2.2361, abs=0.01)
    assert (loc - mean_field(chain, x).loc).abs().max() < 0.15


def test_the_cell_is_a_gate_of_precisions() -> None:
    cell = GaussianLadderCell(4, 3).double()
    features, prior = torch.randn(6, 4).double(), torch.randn(2, 6, 3).double()
    message, log_precision = cell.message(features).chunk(2, -1)
    both = dist.Normal(message, (-0.5 * log_precision).exp())
    other = dist.Normal(prior[0], (-0.5 * prior[1]).exp())
    combined = cell(features, *prior)
    z = torch.randn(5, 6, 3).double()
    product = both.log_prob(z) + other.log_prob(z)
    made = dist.Normal(combined.loc, combined.scale).log_prob(z)
    torch.testing.assert_close((product - made).std(0), torch.zeros(6, 3).double())
    with torch.no_grad():
        cell.message.bias[3:] = -1e9
    silent = cell(features, *prior).loc
    torch.testing.assert_close(silent, prior[0], atol=1e-5, rtol=1e-5)


def guide_of(backward: bool = False, **options: Any) -> LadderGuide:  # noqa: ANN401
    torch.manual_seed(0)
    model = HierarchicalTemporalModel(FRAME, latents=[3, 2], hidden=4, decoder=(5,))
    guide = LadderGuide(model, units=4, hidden=5, backward=backward, **options)
    with torch.no_grad():
        for parameter in guide.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    guide.model.double()
    return guide.double()


@pytest.mark.parametrize("backward", [False, True])
def test_q_reads_what_it_may(backward: bool) -> None:
    """Given the latents, q depends on frames up to its step, and if smoothing on later ones."""
    guide = guide_of(backward)
    x = torch.rand(2, 4, FRAME).double().requires_grad_()
    values = {name: value.detach() for name, value in guide(x).items()}
    trace = poutine.trace(poutine.condition(guide, data=values)).get_trace(x)
    for name in ("z2_2", "z1_2"):
        (slope,) = torch.autograd.grad(
            trace.nodes[name]["fn"].base_dist.loc.sum(), x, retain_graph=True
        )
        felt = slope.abs().sum((0, 2)) > 0
        assert felt.tolist() == [True, True, backward, backward]


def test_a_later_site_reads_the_earlier_ones_and_the_prior() -> None:
    guide = guide_of()
    x = torch.rand(2, 1, FRAME).double()
    base = guide(x)
    means = []
    for shift in (0.0, 1.0):
        moved = base | {"z2_1": base["z2_1"] + shift}
        trace = poutine.trace(poutine.condition(guide, data=moved)).get_trace(x)
        means.append({n: trace.nodes[n]["fn"].mean for n in ("z2_1", "z1_1")})
    assert torch.equal(means[0]["z2_1"], means[1]["z2_1"])
    assert (means[0]["z1_1"] - means[1]["z1_1"]).abs().min() > 0


@pytest.mark.parametrize("backward", [False, True])
def test_missing_frames_say_nothing(backward: bool) -> None:
    """A gap leaves the engine as it was: what comes after is as without the frames of the gap."""
    guide = guide_of(backward)
    x = torch.rand(2, 5, FRAME).double()
    mask = torch.tensor([[True, True, False, False, True]] * 2)
    reader = guide.forward_reader
    states = []
    for frames in (x[:, [0, 1, 4]], x):
        state, seen = reader.initial_state(Size((2,))), mask.unbind(1)
        for t in range(frames.shape[1]):
            here = None if frames.shape[1] == 3 else seen[t]
            state = reader(state, frames[:, t], here, Size((2,)))
        states.append(state.features)
    for one, other in zip(*states, strict=True):
        torch.testing.assert_close(one, other)
    if backward:
        clean = torch.where(mask[..., None], x, 0.0)
        whole = guide.encode(clean, mask, None)
        short = guide.encode(x[:, [0, 1, 4]], None, None)
        for one, other in zip(whole, short, strict=True):
            torch.testing.assert_close(one[:, [0, 1, 4]], other)
            torch.testing.assert_close(one[:, 2], other[:, 2])
        assert guide.informed(mask).all()
    assert torch.equal(guide_of().informed(mask), mask)


def test_any_engine_reads_frames_of_any_form() -> None:
    model = HierarchicalTemporalModel((1, 8, 8), latents=[3, 2, 2], hidden=4)
    rows = [ConvRow(2), PoolRow(2), ConvRow(3), LSTMRow(4)]
    guide = LadderGuide(model, RLadder((1, 8, 8), rows), hidden=5)
    assert guide.forward_reader.levels == [4, 2, 1]  # without the prediction of the frame
    assert guide.forward_reader.sizes == [4, 32, 128]
    x = torch.rand(2, 3, 1, 8, 8).round()
    assert guide(x)["z1_3"].shape == (2, 3)
    chosen = LadderGuide(model, RLadder((1, 8, 8), rows), levels=[3, 3, 0], hidden=5)
    assert chosen.forward_reader.sizes == [48, 48, 64]
    flat = HierarchicalTemporalModel(64, latents=[3], hidden=4)
    assert LadderGuide(flat, RLadder((1, 8, 8), rows))(x.flatten(2))["z1_1"].shape == (2, 3)
    terms = filter_sequences(guide, x, particles=4)
    assert terms.free_energy.shape == (3, 4, 2)


def test_q_begins_close_to_the_prior_and_may_be_wider_only_if_residual() -> None:
    torch.manual_seed(0)
    model = HierarchicalTemporalModel(FRAME, latents=[3, 2], hidden=4)
    x = torch.rand(20, 4, FRAME)
    divergences, widths = {}, {}
    for combine in ("residual", "precision"):
        guide = LadderGuide(model, units=4, hidden=5, combine=combine)
        with torch.no_grad():
            divergences[combine] = filter_sequences(guide, x).divergence.mean()
            for message in guide.messages.parameters():
                message.add_(torch.randn_like(message))
            trace = poutine.trace(guide).get_trace(x)
            prior = poutine.trace(poutine.replay(model, trace)).get_trace(x)
        nodes = [(trace.nodes[n]["fn"], prior.nodes[n]["fn"]) for n in ("z2_3", "z1_3")]
        widths[combine] = torch.cat([(q.stddev / p.stddev).flatten() for q, p in nodes])
    assert divergences["residual"] < 0.1 < divergences["precision"]
    assert widths["precision"].max() < 1
    assert widths["residual"].min() < 1 < widths["residual"].max()


@pytest.mark.parametrize("combine", ["residual", "precision"])
@pytest.mark.parametrize("backward", [False, True])
def test_training_closes_most_of_the_gap_to_the_exact_evidence(
    backward: bool, combine: str
) -> None:
    """On a linear model, whose evidence the Kalman algebra knows."""
    model = linear((2, 2))
    pyro.set_rng_seed(1)
    x = model.generate(16, 4)
    centred = x - model.emit[-1].parameters_of.bias[:FRAME]
    exact = evidence(model).log_prob(centred).sum()
    torch.manual_seed(0)
    options: dict[str, Any] = {"backward": backward, "combine": combine}
    guide = LadderGuide(model, units=16, hidden=24, **options).double()
    bound, optimizer = FilteringELBO()(model, guide), torch.optim.Adam(guide.parameters(), 1e-2)

    def gap() -> float:
        with torch.no_grad():
            terms = filter_sequences(guide, x, particles=50)
        return (terms.free_energy.mean(1).sum() + exact).item()

    before = gap()
    for _ in range(60):
        optimizer.zero_grad()
        bound(x).backward()
        optimizer.step()
    assert 0 < gap() < 0.5 * before


def test_an_engine_that_mixes_sequences_is_warned_of() -> None:
    model = HierarchicalTemporalModel(4, latents=[2, 2], hidden=4)
    rows = [LinearRow(4, cell="none"), LSTMRow(3)]
    with pytest.warns(UserWarning, match="RLadder normalises over batches") as caught:
        LadderGuide(model, RLadder((4,), rows, norm="batch"))
    assert caught[0].filename == __file__


def test_bad_options_are_named() -> None:
    model = HierarchicalTemporalModel(FRAME, latents=[3, 2])
    with pytest.raises(ValueError, match=r"engine must read frames of 5 values.*\(1,\)"):
        LadderGuide(model, Copy())
    one = HierarchicalTemporalModel(1, latents=[3, 2])
    with pytest.raises(ValueError, match=r"levels must be one index from 0 to 2.*\['z2', 'z1'\]"):
        LadderGuide(one, Copy(), levels=[0])
    with pytest.raises(ValueError, match=r"levels must be one index.*got \[3, 0\]"):
        LadderGuide(one, Copy(), levels=[3, 0])
    with pytest.raises(ValueError, match="engine must have a decoder.*RLadder with 0 levels"):
        LadderGuide(one, RLadder((1,), [LSTMRow(3)], decoder=False))
    with pytest.raises(ValueError, match="engine must read frames.*got Linear for frames"):
        LadderGuide(one, nn.Linear(1, 1))
    with pytest.raises(TypeError, match="model must be a StepModel; got Linear"):
        LadderGuide(nn.Linear(1, 1))
    with pytest.raises(ValueError, match="hidden must be one positive size or more; got 0"):
        LadderGuide(one, hidden=0)
    with pytest.raises(ValueError, match="combine must be one of residual, precision; got 'no'"):
        LadderGuide(one, combine="no")
    with pytest.raises(ValueError, match="prediction must not be negative; got -1"):
        LadderGuide(one, prediction=-1.0)
    with pytest.raises(ValueError, match="prediction must be 0 .* as the default one; got 0.1"):
        LadderGuide(one, prediction=0.1)
