"""The filtering bound is the one of Pyro on the unrolled pair, in value and in gradient."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import SVI, Trace_ELBO, TraceMeanField_ELBO
from torch import Size, Tensor, nn
from torch.autograd import grad
from torch.distributions import kl_divergence
from torch.utils._python_dispatch import TorchDispatchMode

from pyro_seq.data import Batch
from pyro_seq.guides import AVF, Bootstrap, NeuralFilter, VariationalEM
from pyro_seq.guides.filtering import FilteringGuide
from pyro_seq.inference import FIVO, IWAE, FilteringELBO
from pyro_seq.inference.filtering import StepELBO, filter_sequences
from pyro_seq.inference.together import priors_can_wait
from pyro_seq.models import SRNN
from pyro_seq.models.step_model import SplitStepModel, StepModel
from pyro_seq.training import SequenceLoss
from tests.inference.pairs import ExactFilter, LinearStep, SplitLinearStep, linear_batch

OPTIONS = {"allow_unused": True, "materialize_grads": True}


class State(NamedTuple):
    z: Tensor
    last: Tensor


class Rich(StepModel):
    """Four latents: hierarchical, positive, one of a family without closed divergences, and a
    number; a scaled and a masked site; controls; the frame is read by the next step."""

    controls = 2

    def __init__(self) -> None:
        super().__init__()
        self.move = nn.Linear(2 + 3 + 2, 2)
        self.emit = nn.Linear(2 + 2 + 1, 3)

    def initial_state(self, batch_shape: Size) -> State:
        like = self.move.weight
        return State(like.new_zeros(*batch_shape, 2), like.new_zeros(*batch_shape, 3))

    def step(self, state: State, x_t: Tensor | None, u_t: Tensor | None = None) -> State:
        spread = pyro.sample("spread", dist.Gamma(torch.full_like(state.z, 3.0), 4.0).to_event(1))
        loc = self.move(torch.cat([state.z, state.last, u_t], -1)).tanh()
        z = pyro.sample("z", dist.Normal(loc, spread + 0.1).to_event(1))
        with poutine.scale(scale=0.7):
            heavy = pyro.sample("heavy", dist.StudentT(5.0, z, 0.5).to_event(1))
        with poutine.mask(mask=z[..., 0] > 0):
            level = pyro.sample("level", dist.Normal(heavy.sum(-1), 1.0))
        mean = self.emit(torch.cat([z, heavy, level.unsqueeze(-1)], -1))
        with poutine.scale(scale=1.3):
            x = pyro.sample("x", dist.Normal(mean, 0.8).to_event(1), obs=x_t)
        return State(z, x)


class Parts(SplitStepModel):
    """Two latents, the second positive and with a prior that depends on the first, in parts."""

    controls = 2

    class Latents(NamedTuple):
        z: Tensor
        rate: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.move = nn.Linear(2 + 3 + 2, 2)
        self.emit = nn.Linear(2, 3)

    def begin(self, batch_shape: Size) -> State:
        like = self.move.weight
        return State(like.new_zeros(*batch_shape, 2), like.new_zeros(*batch_shape, 3))

    def latents(self, state: State, u_t: Tensor | None) -> Latents:
        loc = self.move(torch.cat([state.z, state.last, u_t], -1)).tanh()
        z = pyro.sample("z", dist.Normal(loc, 0.7).to_event(1))
        return self.Latents(z, pyro.sample("rate", dist.LogNormal(z.sum(-1), 0.5)))

    def emission(self, latents: Latents) -> dist.Distribution:
        return dist.Normal(self.emit(latents.z), latents.rate.unsqueeze(-1) + 0.3).to_event(1)

    def transition(
        self, state: State, latents: Latents, embedding: Tensor, u_t: Tensor | None
    ) -> State:
        return State(latents.z, embedding)


MODELS: dict[str, Callable[[], StepModel]] = {
    "rich": Rich,
    "parts": Parts,
    "srnn": lambda: SRNN(3, latent=2, hidden=3, prior=[4], decoder=[4], controls=2),
}
GUIDES: dict[str, Callable[[StepModel], FilteringGuide]] = {
    "filter": lambda model: NeuralFilter(model, hidden=4),
    "residual": lambda model: NeuralFilter(model, hidden=4, residual=True),
    "bootstrap": Bootstrap,
    "avf": lambda model: AVF(model, 2, hidden=[4], normalise="log", stop_gradients=False),
}
EM_GUIDES: dict[str, Callable[[StepModel], FilteringGuide]] = {
    "avf em": lambda model: AVF(model, 2, hidden=[4]),
    "vfem": lambda model: VariationalEM(model, 2),
}


def make(model: str, guide: str) -> tuple[StepModel, FilteringGuide]:
    torch.manual_seed(0)
    made = MODELS[model]().double()
    return made, (GUIDES | EM_GUIDES)[guide](made).double()


def sequences(missing: str = "") -> Batch:
    generator = torch.Generator().manual_seed(1)
    x = (torch.rand(4, 5, 3, generator=generator) > 0.5).double()
    u = torch.randn(4, 5, 2, generator=generator).double()
    if not missing:
        return Batch(x, None, u)
    mask = torch.ones(4, 5, dtype=torch.bool)
    mask[1, 3:] = False
    if missing == "gaps":
        mask[2, 1:3], mask[0, 0] = False, False
    return Batch(torch.where(mask[..., None], x, torch.nan), mask, u)


def outcome(
    elbo: object, model: StepModel, guide: FilteringGuide, batch: Batch
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Loss and gradient."""
    pyro.clear_param_store()
    pyro.set_rng_seed(5)
    loss = elbo.differentiable_loss(model, guide, *batch)
    known = [*model.parameters(), *guide.parameters()]
    return loss.detach(), grad(loss, known, **OPTIONS)


BOUNDS = [(Trace_ELBO, False), (TraceMeanField_ELBO, True)]


@pytest.mark.parametrize(
    ("model", "missing"),
    [("rich", "gaps"), ("parts", ""), ("parts", "gaps")]
    + [("srnn", missing) for missing in ("", "padding", "gaps")],
)
@pytest.mark.parametrize("guide", GUIDES)
def test_value_and_gradient_are_those_of_pyro(model: str, guide: str, missing: str) -> None:
    """With the same noise."""
    pair, batch = make(model, guide), sequences(missing)
    for stock, analytic in BOUNDS:
        found = outcome(FilteringELBO(analytic=analytic), *pair, batch)
        expected = outcome(stock(), *pair, batch)
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
        assert all(torch.isfinite(g).all() for g in found[1])
        assert sum(float(g.abs().sum()) for g in found[1]) > 1e-3


@pytest.mark.parametrize("missing", ["", "padding"])
@pytest.mark.parametrize("model", ["parts", "srnn"])
@pytest.mark.parametrize("guide", EM_GUIDES)
def test_value_of_guides_with_their_own_gradient(model: str, guide: str, missing: str) -> None:
    pair, batch = make(model, guide), sequences(missing)
    for stock, analytic in BOUNDS:
        values = []
        for elbo in (FilteringELBO(analytic=analytic), stock()):
            assert all(torch.isfinite(g).all() for g in outcome(elbo, *pair, batch)[1])
            pyro.set_rng_seed(5)
            values.append(elbo.loss(*pair, *batch))  # training may draw more numbers
        assert values[0] == pytest.approx(values[1], rel=1e-9)


@pytest.mark.parametrize(("model", "missing"), [("rich", ""), ("parts", "gaps"), ("srnn", "")])
def test_particles_side_by_side_or_one_after_the_other(model: str, missing: str) -> None:
    pair, batch = make(model, "filter"), sequences(missing)
    for stock, analytic in BOUNDS:
        side = outcome(FilteringELBO(3, analytic=analytic), *pair, batch)
        plate = stock(num_particles=3, vectorize_particles=True, max_plate_nesting=1)
        torch.testing.assert_close(side, outcome(plate, *pair, batch), rtol=1e-9, atol=1e-9)
        pyro.set_rng_seed(5)
        single = FilteringELBO(analytic=analytic)
        losses = [single.differentiable_loss(*pair, *batch) for _ in range(3)]
        looped = outcome(stock(num_particles=3), *pair, batch)
        torch.testing.assert_close(sum(losses).detach() / 3, looped[0])


@pytest.mark.parametrize(("particles", "count"), [(1, 2), (2, 1)])
def test_all_steps_at_once_are_one_after_the_other(particles: int, count: int) -> None:
    """Few enough draws (below 16) that torch makes the same numbers together and one by one."""
    torch.manual_seed(0)
    model = SRNN(3, latent=2, hidden=3, prior=[4], decoder=[4], controls=2).double()
    guide = NeuralFilter(model, hidden=4, reads=["h"]).double()
    batch = Batch._make(None if part is None else part[:count, :3] for part in sequences())
    shape = Size((count,))
    frames, _ = guide.frames(*batch, guide.initial(shape), shape)
    assert guide.parallel and priors_can_wait(guide, frames)
    for stock, analytic in BOUNDS:
        found = outcome(FilteringELBO(particles, analytic=analytic), model, guide, batch)
        plate = stock(
            num_particles=particles, vectorize_particles=particles > 1, max_plate_nesting=1
        )
        expected = outcome(plate, model, guide, batch)
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


def exact_elbo(model: LinearStep, guide: ExactFilter, x: Tensor) -> Tensor:
    """Of one sequence `(time, obs)`: joint Gaussians q(z) and p(z), and moments of x given z."""
    p, time = model.parts, len(x)
    precision = p.q**-2 + (p.C.square() / p.r[:, None] ** 2).sum(0)
    follow = p.A / (p.q**2 * precision)[:, None]
    joint = []
    for matrix, shift, scale in (
        (p.A, torch.zeros(time, 2).double(), p.q),
        (follow, (x / p.r**2) @ p.C / precision + guide.shift, precision.rsqrt() * guide.stretch),
    ):
        loc, rows, last = [], [], p.start
        for t in range(time):
            last = matrix @ last + shift[t]
            loc.append(last)
            powers = [torch.linalg.matrix_power(matrix, t - s) for s in range(t + 1)]
            zeros = [torch.zeros(2, 2).double()] * (time - t - 1)
            rows.append(torch.cat([power * scale for power in powers] + zeros, 1))
        joint.append(dist.MultivariateNormal(torch.cat(loc), scale_tril=torch.cat(rows)))
    prior, q = joint
    cov = q.covariance_matrix.view(time, 2, time, 2)
    reconstruction = dist.Normal(q.loc.view(time, 2) @ p.C.mT, p.r).log_prob(x).sum()
    for t in range(time):
        reconstruction = reconstruction - 0.5 * ((p.C @ cov[t, :, t] * p.C).sum(1) / p.r**2).sum()
    return reconstruction - kl_divergence(q, prior)


@pytest.mark.parametrize("kind", [LinearStep, SplitLinearStep])
@pytest.mark.parametrize("analytic", [False, True])
def test_expectation_of_value_and_gradient_is_exact(kind: type, analytic: bool) -> None:
    model = kind()
    guide = ExactFilter(model, 0.4, 1.4)
    x, copies = linear_batch(model, sequences=1, time=3).x, 4000
    known = [p for m in (model, guide) for p in m.parameters() if p.numel()]
    value = exact_elbo(model, guide, x[0])
    exact = torch.cat([g.flatten() for g in grad(value, known)])
    estimates, bounds = [], []
    elbo = FilteringELBO(copies // 20, analytic=analytic)
    for seed in range(20):
        torch.manual_seed(seed)
        bound = -elbo.differentiable_loss(model, guide, x)
        bounds.append(bound.detach())
        estimates.append(torch.cat([g.flatten() for g in grad(bound, known)]))
    for found, expected in ((bounds, value.detach()), (estimates, exact)):
        draws = torch.stack(found)
        error = draws.std(0) / 20**0.5
        assert ((draws.mean(0) - expected).abs() < 5 * error + 1e-9).all()
        assert (error < 0.05 * expected.abs().max()).all()


@pytest.mark.parametrize("local", [False, True])
@pytest.mark.parametrize("elbo", [FilteringELBO, lambda: IWAE(3), lambda: FIVO(3)])
def test_genuine_svi_is_a_loop_in_torch(elbo: Callable[[], StepELBO], local: bool) -> None:
    """In both settings of Pyro's parameter store."""
    with pyro.settings.context(module_local_params=local):
        pairs = [make("rich", "filter") for _ in range(2)]
        svi = SVI(*pairs[0], pyro.optim.Adam({"lr": 1e-2}), elbo())
        module = elbo()(*pairs[1])
        optimizer = torch.optim.Adam(module.parameters(), lr=1e-2)
        before = [p.detach().clone() for p in module.parameters()]
        for step in range(4):
            batch = sequences("gaps" if step % 2 else "")
            pyro.set_rng_seed(step)
            loss = svi.step(*batch)
            pyro.set_rng_seed(step)
            optimizer.zero_grad()
            value = module(*batch)
            value.backward()
            optimizer.step()
            assert loss == pytest.approx(float(value.detach()), rel=1e-12)
        pyro.set_rng_seed(0)
        loss = svi.evaluate_loss(*sequences())
        pyro.set_rng_seed(0)
        assert loss == pytest.approx(elbo().loss(*pairs[1], *sequences()), rel=1e-12)
    after = [[p.detach() for m in pair for p in m.parameters()] for pair in pairs]
    torch.testing.assert_close(*after)
    assert not any(map(torch.equal, before, after[1]))
    assert bool(pyro.get_param_store().keys()) is not local


@pytest.mark.parametrize("elbo", [FilteringELBO, lambda: IWAE(3), lambda: FIVO(3)])
def test_the_loss_module_has_the_mean_of_the_objective(elbo: Callable[[], StepELBO]) -> None:
    pair, batch = make("srnn", "filter"), sequences("padding")
    loss = SequenceLoss(*pair, elbo())
    torch.manual_seed(5)
    value = loss(batch)
    expected = outcome(elbo(), *pair, batch)
    torch.testing.assert_close(value.detach(), expected[0] / 18)
    torch.testing.assert_close(
        grad(value, [*loss.parameters()], **OPTIONS)[0], expected[1][0] / 18
    )


class NoHostSync(TorchDispatchMode):
    def __torch_dispatch__(
        self,
        func: Callable[..., object],
        types: tuple[type, ...],
        args: tuple[object, ...] = (),
        kwargs: dict[str, object] | None = None,
    ) -> object:
        assert func is not torch.ops.aten._local_scalar_dense.default, "a tensor was read"
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("guide", GUIDES | EM_GUIDES)
@pytest.mark.parametrize(
    "elbo", [FilteringELBO, lambda: FilteringELBO(3), lambda: IWAE(3), lambda: FIVO(3, 0.9)]
)
def test_no_value_is_read_in_a_training_step(elbo: Callable[[], StepELBO], guide: str) -> None:
    for model in ("rich", "srnn"):
        loss = SequenceLoss(*make(model, guide), elbo())
        with pyro.validation_enabled(False), NoHostSync():
            loss(sequences()).backward()
    with pytest.raises(AssertionError, match="a tensor was read"), NoHostSync():
        loss.elbo.loss_and_grads(loss.model, loss.guide, *sequences())


def test_going_on_from_a_state_is_one_pass() -> None:
    for kind in ("rich", "parts", "srnn"):
        _, guide = make(kind, "filter")
        batch = sequences("gaps")
        for part, particles in ((batch, None), (batch, 2), (sequences(), None)):
            torch.manual_seed(3)
            whole = filter_sequences(guide, *part, particles=particles)
            torch.manual_seed(3)
            state, pieces = None, []
            for rows in (slice(0, 2), slice(2, 5)):
                cut = [None if t is None else t[:, rows] for t in part]
                piece = filter_sequences(guide, *cut, particles=particles, state=state)
                state = piece.state
                pieces.append(piece)
            for name in ("log_likelihood", "divergence"):
                joined = torch.cat([getattr(piece, name) for piece in pieces])
                torch.testing.assert_close(joined, getattr(whole, name))
            torch.testing.assert_close(state, whole.state)


def test_what_cannot_be_bound_is_named() -> None:
    model, guide = make("srnn", "filter")
    batch = sequences()
    with pytest.raises(TypeError, match="guide must be a FilteringGuide; got SRNN"):
        FilteringELBO().loss(model, model, *batch)
    with pytest.raises(ValueError, match="it was made for another one"):
        FilteringELBO().loss(make("srnn", "filter")[0], guide, *batch)
    with pytest.raises(ValueError, match="num_particles must be at least 1; got 0"):
        FilteringELBO(0)

    class Discrete(LinearStep):
        def step(self, state: State, x_t: Tensor | None, u_t: Tensor | None = None) -> State:
            count = pyro.sample("count", dist.Poisson(torch.ones_like(state.z)).to_event(1))
            pyro.sample("x", dist.Normal(count @ self.parts.C.mT, 1.0).to_event(1), obs=x_t)
            return state

    calls: list[int] = []

    class Changing(LinearStep):
        def step(self, state: State, x_t: Tensor | None, u_t: Tensor | None = None) -> State:
            calls.append(1)
            z = pyro.sample("z" if len(calls) % 2 else "y", dist.Normal(state.z, 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z @ self.parts.C.mT, 1.0).to_event(1), obs=x_t)
            return state._replace(z=z)

    class Silent(LinearStep):
        def step(self, state: State, x_t: Tensor | None, u_t: Tensor | None = None) -> State:
            return state._replace(z=pyro.sample("z", dist.Normal(state.z, 1.0).to_event(1)))

    class Deaf(LinearStep):
        def step(self, state: State, x_t: Tensor | None, u_t: Tensor | None = None) -> State:
            pyro.sample("x", dist.Normal(state.z @ self.parts.C.mT, 1.0).to_event(1), obs=x_t)
            return state

    x = torch.zeros(2, 4, 3).double()
    for kind, message in (
        (Discrete, "'count' must be reparametrised .* got Poisson. Train .* Pyro's Trace_ELBO"),
        (Changing, r"must be the same at every step, \['z'\]; got \['y'\] at step 2"),
        (Silent, "the step must sample the frame"),
        (Deaf, "one or more; got none at step 1"),
    ):
        odd = kind()
        with pytest.raises(ValueError, match=message):
            FilteringELBO().differentiable_loss(odd, Bootstrap(odd), x)
