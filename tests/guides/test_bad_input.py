"""What is wrong is named, and what is odd comes out right, with every filtering guide."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI, Trace_ELBO, TraceMeanField_ELBO
from pyro.optim import Adam
from torch import Size, Tensor, nn

from pyro_seq.guides import AVF, Bootstrap, FilteringGuide, NeuralFilter, VariationalEM
from pyro_seq.inference import FIVO, FilteringELBO
from pyro_seq.inference.filtering import filter_sequences
from pyro_seq.models import StepModel
from pyro_seq.testing import GuideCase, ModelCase
from pyro_seq.testing.contracts import run_contracts
from pyro_seq.testing.filters import (
    gradients_reach_both,
    masked_frames_change_no_term,
    one_pass_equals_stock_objectives,
    online_equals_the_whole_sequence,
)
from tests.guides.test_filtering import GUIDES

CORE = ("avf", "bootstrap", "filter", "smoother", "vfem")


class State(NamedTuple):
    z: Tensor


class Small(StepModel):
    """A latent walk of two numbers, whose step a subclass writes."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(2))

    def initial_state(self, batch_shape: Size) -> State:
        return State(self.weight.new_zeros(*batch_shape, 2))

    def latent(self, name: str, state: State) -> Tensor:
        return pyro.sample(name, dist.Normal(state.z, 1.0).to_event(1))

    def observed(self, loc: Tensor, x_t: Tensor | None) -> Tensor:
        return pyro.sample("x", dist.Normal(self.weight * loc, 1.0).to_event(1), obs=x_t)


class OtherSite(Small):
    def step(self, state: State, x_t: Tensor | None, u_t: Tensor | None = None) -> State:
        name = "z" if float(state.z.detach().max()) < 50 else "other"
        z = self.latent(name, State(0 * state.z))
        self.observed(z, x_t)
        return State(state.z + 30)


class VanishingSite(Small):
    def step(self, state: State, x_t: Tensor | None, u_t: Tensor | None = None) -> State:
        z = self.latent("z", State(0 * state.z))
        if float(state.z.detach().max()) < 50:
            z = z + self.latent("other", State(0 * state.z))
        self.observed(z, x_t)
        return State(state.z + 30)


class InPlace(Small):
    def step(self, state: State, x_t: Tensor | None, u_t: Tensor | None = None) -> State:
        z = self.latent("z", state)
        self.observed(z, x_t)
        state.z.copy_(z.detach())
        return state


class Keeps(Small):
    def step(self, state: State, x_t: Tensor | None, u_t: Tensor | None = None) -> State:
        self.last = self.latent("z", state)
        self.observed(self.last, x_t)
        return State(self.last)


class BareTensor(Small):
    def step(self, state: State, x_t: Tensor | None, u_t: Tensor | None = None) -> Tensor:
        z = self.latent("z", state)
        self.observed(z, x_t)
        return z


class NoLatent(Small):
    def step(self, state: State, x_t: Tensor | None, u_t: Tensor | None = None) -> State:
        self.observed(state.z, x_t)
        return state


class NoFrame(Small):
    def step(self, state: State, x_t: Tensor | None, u_t: Tensor | None = None) -> State:
        return State(self.latent("z", state))


class NoEvent(Small):
    def step(self, state: State, x_t: Tensor | None, u_t: Tensor | None = None) -> State:
        z = pyro.sample("z", dist.Normal(state.z, 1.0))
        self.observed(z, x_t)
        return State(z)


class NoFrameEvent(Small):
    def step(self, state: State, x_t: Tensor | None, u_t: Tensor | None = None) -> State:
        z = self.latent("z", state)
        pyro.sample("x", dist.Normal(z, 1.0), obs=x_t)
        return State(z)


FAULTS = {
    OtherSite: "sites of a step must be the same at every step",
    VanishingSite: "sites of a step must be the same at every step",
    InPlace: "step must not change the state it is given: a tensor of it was modified in place",
    Keeps: r"step must keep nothing on the model.* it set \['last'\]. Return what is to be remem",
    BareTensor: "step must return a state like the one it was given, State; got Tensor",
    NoLatent: "latent.* got none",
    NoFrame: r"the step must sample the frame: pyro.sample\('x'",
    NoEvent: r"(?s)site '?z[' ].*Declare .* with .to_event",
    NoFrameEvent: r"(?s)(got \(3, 2\)|at site x).*Declare .* with .to_event",
}


@pytest.mark.parametrize("name", CORE)
@pytest.mark.parametrize(("make", "message"), FAULTS.items(), ids=[m.__name__ for m in FAULTS])
def test_faulty_steps_are_named(make: type[Small], message: str, name: str) -> None:
    with pytest.raises((ValueError, RuntimeError, TypeError), match=message):
        model = make()
        FilteringELBO()(model, GUIDES[name](model))(torch.randn(3, 5, 2))


class ReadsFrame(Small):
    def step(self, state: State, x_t: Tensor | None, u_t: Tensor | None = None) -> State:
        self.observed(self.latent("z", state), x_t)
        return State(x_t + 0.0)  # type: ignore[operator]


class ReadsControl(Small):
    def step(self, state: State, x_t: Tensor | None, u_t: Tensor | None = None) -> State:
        self.observed(self.latent("z", State(state.z + u_t)), x_t)  # type: ignore[operator]
        return state


@pytest.mark.parametrize(
    ("make", "hint"),
    [
        (ReadsFrame, "frame is the value that pyro.sample"),
        (ReadsControl, "sets its attribute con"),
    ],
)
def test_arguments_that_are_none_are_explained(make: type[Small], hint: str) -> None:
    for call in (lambda: NeuralFilter(make()), lambda: make().generate(2, 3)):
        with pytest.raises(TypeError) as caught:
            call()
        assert any(hint in note for note in caught.value.__notes__)


class Walk(Small):
    def step(self, state: State, x_t: Tensor | None, u_t: Tensor | None = None) -> State:
        z = self.latent("z", state)
        self.observed(z, x_t)
        return State(z)


@pytest.mark.parametrize("name", CORE)
def test_bad_sequences_are_named(name: str) -> None:
    model = Walk()
    bound = FilteringELBO()(model, GUIDES[name](model))
    x, mask = torch.randn(3, 5, 2), torch.ones(3, 5, dtype=torch.bool)
    broken = x.clone()
    broken[1, 2] = torch.nan
    for arguments, message in (
        ((broken,), "x must be finite where it is observed"),
        ((broken, mask), "x must be finite where it is observed"),
        ((x, mask.float()), "mask must be bool"),
        ((x, mask[:, 1:]), r"mask must be .* \(3, 5\); got shape \(3, 4\)"),
        ((x, mask, torch.zeros(3, 5, 1)), "controls"),
    ):
        with pytest.raises(ValueError, match=message):
            bound(*arguments)
    mask[1, 2] = False
    assert bound(broken, mask).isfinite()


@pytest.mark.parametrize("name", CORE)
def test_a_guide_of_another_model_is_refused(name: str) -> None:
    model, other = Walk(), Walk()
    with pytest.raises(ValueError, match="guide must be the guide of this model"):
        FilteringELBO()(model, GUIDES[name](other))(torch.randn(3, 5, 2))
    with pytest.raises(TypeError, match="model must be a StepModel; got Linear"):
        GUIDES[name](nn.Linear(2, 2))


class Chain(StepModel):
    """A hidden Markov chain of three states, seen through noise."""

    class State(NamedTuple):
        k: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.tensor([[2.0, 0, 0], [0, 1.0, 0], [0.5, 0, 1.0]]))
        self.loc = nn.Parameter(torch.tensor([-2.0, 0.0, 2.0]))

    def initial_state(self, batch_shape: Size) -> State:
        return self.State(torch.zeros(batch_shape, dtype=torch.long))

    def step(self, state: State, x_t: Tensor | None, u_t: Tensor | None = None) -> State:
        k = pyro.sample("k", dist.Categorical(logits=self.logits[state.k]))
        pyro.sample("x", dist.Normal(self.loc[k], 0.7), obs=x_t)
        return self.State(k)


@pytest.mark.parametrize("name", [name for name in CORE if name != "bootstrap"])
def test_a_discrete_latent_needs_the_bootstrap_guide(name: str) -> None:
    message = "site 'k' cannot be inferred .*Categorical. The guide 'bootstrap' .*Trace_ELBO"
    with pytest.raises(ValueError, match=message):
        model = Chain()
        FilteringELBO()(model, GUIDES[name](model))(torch.zeros(2, 3))


def test_bootstrap_and_a_discrete_latent() -> None:
    model = Chain()
    guide = Bootstrap(model)
    x = model.generate(batch=3, time=6)
    mask = torch.ones(3, 6, dtype=torch.bool)
    mask[0, 2] = mask[1, 4:] = False
    with pytest.raises(ValueError, match="'k' must be reparametrised .* Categorical.*Trace_ELB"):
        FilteringELBO()(model, guide)(x, mask)
    losses = []
    for elbo in (FilteringELBO(), Trace_ELBO()):
        torch.manual_seed(0)
        losses.append(elbo.loss(model, guide, x, mask))
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    first = model.logits[0].log_softmax(-1)
    weights = torch.where(mask[..., None], dist.Normal(model.loc, 0.7).log_prob(x[..., None]), 0.0)
    moves = model.logits.log_softmax(-1)
    forward = first + weights[:, 0]
    for t in range(1, 6):
        forward = (forward[:, :, None] + moves).logsumexp(1) + weights[:, t]
    evidence = forward.logsumexp(-1).detach()
    with torch.no_grad():
        estimate = -FIVO(4000).loss(model, guide, x, mask)
    assert estimate == pytest.approx(float(evidence.sum()), abs=0.2)
    with pyro.settings.context(module_local_params=False):
        svi = SVI(model, guide, Adam({"lr": 0.01}), Trace_ELBO())
        before = model.loc.clone()
        svi.step(x, mask)
        assert not torch.equal(model.loc, before)


class Blind(Small):
    """The frame says nothing of the latents, whose scales are far from 1."""

    def step(self, state: State, x_t: Tensor | None, u_t: Tensor | None = None) -> State:
        scale = torch.tensor([1e-5, 30.0]).to(state.z)
        z = pyro.sample("z", dist.Normal(state.z, scale).to_event(1))
        y = pyro.sample("y", dist.Gamma(torch.full_like(z, 0.3), 2e4).to_event(1))
        pyro.sample("x", dist.Normal(self.weight.expand(z.shape), 1.0).to_event(1), obs=x_t)
        return State(z + y)


@pytest.mark.parametrize(
    ("make", "least"),
    [
        (Bootstrap, 0.0),
        (lambda model: VariationalEM(model, 15, optimizer="sgd"), 1e-12),
        (lambda model: VariationalEM(model, 15, optimizer="adam"), 1e-3),  # steps of one size
    ],
    ids=["bootstrap", "sgd", "adam"],
)
def test_the_prior_stays_where_nothing_contradicts_it(
    make: Callable[[StepModel], FilteringGuide], least: float
) -> None:
    model = Blind().double()
    x = torch.randn(4, 5, 2).double()
    exact = -dist.Normal(model.weight, 1.0).log_prob(x).sum(-1).T.detach()
    with torch.no_grad():
        terms = filter_sequences(make(model), x)
    torch.testing.assert_close(-terms.log_likelihood, exact)
    assert terms.divergence.abs().max() <= least


def test_avf_learns_that_the_frames_say_nothing() -> None:
    model = Blind()
    guide = AVF(model, 2, hidden=[8])
    x = torch.randn(8, 3, 2)
    exact = -dist.Normal(model.weight, 1.0).log_prob(x).sum().detach()
    bound = FilteringELBO()(model, guide)
    optimizer = torch.optim.Adam(guide.parameters(), lr=1e-2)
    before = float(bound(x).detach())
    assert before > float(exact) + 0.5
    for _ in range(150):
        optimizer.zero_grad()
        bound(x).backward()
        optimizer.step()
    after = float(bound(x).detach())
    assert float(exact) - 1e-3 < after < float(exact) + 0.1 * (before - float(exact))


class Handled(Small):
    """Latents and a frame whose densities are masked and scaled inside the step."""

    def step(self, state: State, x_t: Tensor | None, u_t: Tensor | None = None) -> State:
        counts = state.z.sum(-1) > 0
        with pyro.poutine.mask(mask=counts):
            z = self.latent("z", state)
        with pyro.poutine.scale(scale=3.0):
            y = self.latent("y", State(z))
            self.observed(y, x_t)
        pyro.sample("w", dist.Normal(y[..., 0], 1.0).mask(~counts))
        return State(z + y)


class Numbers(StepModel):
    """Latent and frame are numbers, of event shape ()."""

    class State(NamedTuple):
        z: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.slope = nn.Parameter(torch.full((1,), 0.9))

    def initial_state(self, batch_shape: Size) -> State:
        return self.State(self.slope.new_zeros(batch_shape))

    def step(self, state: State, x_t: Tensor | None, u_t: Tensor | None = None) -> State:
        z = pyro.sample("z", dist.Normal(self.slope * state.z, 1.0))
        y = pyro.sample("y", dist.LogNormal(0.1 * z, 0.5))
        pyro.sample("x", dist.Normal(z, y), obs=x_t)
        return self.State(z)


class Forgetful(StepModel):
    """A model whose state holds nothing."""

    class State(NamedTuple):
        pass

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(2))

    def initial_state(self, batch_shape: Size) -> State:
        return self.State()

    def step(self, state: State, x_t: Tensor | None, u_t: Tensor | None = None) -> State:
        z = pyro.sample("z", dist.Normal(torch.zeros_like(self.weight), 1.0).to_event(1))
        pyro.sample("x", dist.Normal(self.weight * z, 1.0).to_event(1), obs=x_t)
        return state


@pytest.mark.parametrize(
    "contract",
    [
        one_pass_equals_stock_objectives,
        masked_frames_change_no_term,
        gradients_reach_both,
        online_equals_the_whole_sequence,
    ],
    ids=lambda c: c.__name__,
)
@pytest.mark.parametrize("name", CORE)
@pytest.mark.parametrize("make", [Handled, Numbers, Forgetful], ids=lambda m: m.__name__)
def test_odd_models(
    make: Callable[[], StepModel], name: str, contract: Callable[[GuideCase], None]
) -> None:
    x = torch.randn(3, 4) if make is Numbers else torch.randn(3, 4, 2)
    mask = torch.ones(3, 4, dtype=torch.bool)
    mask[0, 1] = mask[1, 3] = False
    case = GuideCase(ModelCase(make, x, mask, None), GUIDES[name])
    run_contracts([contract], case, f"The guide {name!r}")


def test_the_prior_of_the_guide_is_that_of_the_step() -> None:
    """Handlers in a step scale the divergence as they scale the densities."""
    model = Handled().double()
    guide: FilteringGuide = NeuralFilter(model, hidden=4).double()
    x = torch.randn(3, 4, 2).double()
    torch.manual_seed(0)
    found = FilteringELBO().loss(model, guide, x)
    torch.manual_seed(0)
    assert found == pytest.approx(TraceMeanField_ELBO().loss(model, guide, x), rel=1e-10)


class Plain(Small):
    def step(self, state: State, x_t: Tensor | None, u_t: Tensor | None = None) -> State:
        z = self.latent("z", state)
        self.observed(z, x_t)
        return State(z)


@pytest.mark.parametrize("guide", [name for name in CORE if name != "bootstrap"])
def test_frames_of_another_shape_are_named(guide: str) -> None:
    """Also where they could be broadcast."""
    pair = GUIDES[guide](Plain())
    for width in (1, 3):
        message = (
            rf"x must be .* frame = \(2,\), as the model makes them; got shape \(4, 5, {width}"
        )
        with pytest.raises(ValueError, match=message):
            filter_sequences(pair, torch.zeros(4, 5, width))
