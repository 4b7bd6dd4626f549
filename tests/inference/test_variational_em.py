"""The gradients of guides that stop them, against the algorithm written out."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import Trace_ELBO
from torch import Size, Tensor, nn
from torch.autograd import grad
from torch.distributions import kl_divergence

from pyro_seq.data import Batch
from pyro_seq.guides import AVF, VariationalEM
from pyro_seq.guides.filtering import FilteringGuide
from pyro_seq.inference import IWAE, FilteringELBO
from pyro_seq.models.step_model import SplitStepModel, StepModel
from pyro_seq.training import Callback, Context, SequenceLoss, fit

BATCH, TIME, LATENT, FRAME, HIDDEN = 3, 4, 2, 3, 3
OPTIONS = {"allow_unused": True, "materialize_grads": True}


class State(NamedTuple):
    h: Tensor


class _Parts(nn.Module):
    """A recurrent state h that reads frame and latent, and two distributions that read h."""

    def __init__(self) -> None:
        super().__init__()
        self.prior = nn.Linear(HIDDEN, 2 * LATENT)
        self.emit = nn.Linear(HIDDEN + LATENT, FRAME)
        self.next = nn.Linear(HIDDEN + LATENT + FRAME, HIDDEN)
        self.h_0 = nn.Parameter(torch.randn(HIDDEN))

    def z(self, h: Tensor) -> dist.Normal:
        loc, scale = self.prior(h).chunk(2, -1)
        return dist.Normal(loc, scale.exp())

    def x(self, h: Tensor, z: Tensor) -> dist.Normal:
        return dist.Normal(self.emit(torch.cat([h, z], -1)), 0.5)

    def after(self, h: Tensor, z: Tensor, x: Tensor) -> Tensor:
        return self.next(torch.cat([h, z, x], -1)).tanh()


class Free(StepModel):
    def __init__(self) -> None:
        super().__init__()
        self.parts = _Parts()

    def initial_state(self, batch_shape: Size) -> State:
        return State(self.parts.h_0.expand(*batch_shape, -1))

    def step(self, state: State, x_t: Tensor | None, u_t: Tensor | None = None) -> State:
        z = pyro.sample("z", self.parts.z(state.h).to_event(1))
        x = pyro.sample("x", self.parts.x(state.h, z).to_event(1), obs=x_t)
        return State(self.parts.after(state.h, z, x))


class Split(SplitStepModel):
    class Latents(NamedTuple):
        h: Tensor
        z: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.parts = _Parts()

    def begin(self, batch_shape: Size) -> State:
        return State(self.parts.h_0.expand(*batch_shape, -1))

    def latents(self, state: State, u_t: Tensor | None) -> Latents:
        return self.Latents(state.h, pyro.sample("z", self.parts.z(state.h).to_event(1)))

    def emission(self, latents: Latents) -> dist.Distribution:
        return self.parts.x(*latents).to_event(1)

    def transition(
        self, state: State, latents: Latents, embedding: Tensor, u_t: Tensor | None
    ) -> State:
        return State(self.parts.after(*latents, embedding))


MODELS = {"free": Free, "split": Split}


def make(kind: str, iterations: int = 2, **options: object) -> tuple[StepModel, AVF]:
    torch.manual_seed(0)
    model = MODELS[kind]().double()
    guide = AVF(model, iterations, hidden=[5], units="own", **options).double()
    return model, guide


def frames(time: int = TIME) -> Tensor:
    return torch.randn(BATCH, time, FRAME, generator=torch.Generator().manual_seed(2)).double()


def written_out(
    model: Free | Split, guide: AVF, x: Tensor, learn: Callable[[Tensor], None] | None = None
) -> tuple[Tensor, Tensor]:
    """Objectives of model and network, the noise drawn in the order of the library.

    The network's is the mean over iterations of the free energies that follow them, with all that
    came before the step constant; the model's is the free energy at draws that are constants. A
    split model's last iteration is judged by the draw that the model goes on with, since its
    emission is scored once; otherwise, and when the network is stepped online, by a draw of its
    own.
    """
    p, shared = model.parts, isinstance(model, Split) and learn is None
    constant = copy.deepcopy(p).requires_grad_(False)
    h, theta, phi = p.h_0.expand(BATCH, -1), torch.zeros(()).double(), torch.zeros(()).double()

    def energy(q: dict[str, Tensor], h: Tensor, x_t: Tensor) -> tuple[Tensor, Tensor]:
        posterior = dist.Normal(q["z.loc"], q["z.scale"].exp())
        z = posterior.rsample()
        divergence = kl_divergence(posterior, constant.z(h))
        return (divergence.sum(-1) - constant.x(h, z).log_prob(x_t).sum(-1)), z

    def slope(q: dict[str, Tensor], h: Tensor, x_t: Tensor) -> dict[str, Tensor]:
        leaves = {name: value.detach().requires_grad_() for name, value in q.items()}
        total = energy(leaves, h, x_t)[0].sum()
        return dict(zip(leaves, grad(total, [*leaves.values()]), strict=True))

    for t in range(x.shape[1]):
        before, x_t, mine = h.detach(), x[:, t], []
        prior = constant.z(before)
        now = {"z.loc": prior.mean, "z.scale": prior.stddev.log()}
        gradient = slope(now, before, x_t)
        for k in range(1, guide.iterations + 1):
            now = guide.network({n: v.detach() for n, v in now.items()}, gradient, [])
            if k < guide.iterations or not shared:
                state = torch.get_rng_state()
                gradient = slope(now, before, x_t)
                torch.set_rng_state(state)
                mine.append(energy(now, before, x_t)[0])
        q = {name: value.detach() for name, value in now.items()}
        posterior = dist.Normal(q["z.loc"], q["z.scale"].exp())
        state = torch.get_rng_state()
        z = posterior.rsample()
        if shared:
            torch.set_rng_state(state)
            mine.append(energy(now, before, x_t)[0])
        objective = sum(mine) / guide.iterations
        phi = phi + objective.sum()
        if learn is not None:
            learn(objective.mean())
        divergence = kl_divergence(posterior, p.z(h)).sum()
        theta = theta + divergence - p.x(h, z).log_prob(x_t).sum()
        h = p.after(h, z, x_t)
    return theta, phi


@pytest.mark.parametrize("iterations", [1, 3])
@pytest.mark.parametrize("kind", MODELS)
def test_gradients_of_the_two_steps(kind: str, iterations: int) -> None:
    model, guide = make(kind, iterations)
    x = frames()
    torch.manual_seed(1)
    loss = FilteringELBO().differentiable_loss(model, guide, x)
    torch.manual_seed(1)
    theta, phi = written_out(model, guide, x)
    torch.testing.assert_close(loss.detach(), theta.detach())
    for parameters, objective in (([*model.parameters()], theta), ([*guide.parameters()], phi)):
        expected = grad(objective, parameters, retain_graph=True)
        found = grad(loss, parameters, retain_graph=True)
        torch.testing.assert_close(found, expected)
        assert all(g.abs().sum() > 0 for g in found)


def test_the_network_has_its_own_steps_in_the_pass() -> None:
    """Parameters change from one time step to the next, by the objective of each."""
    for kind in MODELS:
        model, guide = make(kind)
        other = copy.deepcopy(guide)
        x = frames()
        optimizers = [torch.optim.Adam(g.parameters(), lr=0.03) for g in (guide, other)]
        schedule = torch.optim.lr_scheduler.ExponentialLR(optimizers[0], 0.9)
        copied = torch.optim.lr_scheduler.ExponentialLR(optimizers[1], 0.9)

        def learn(
            objective: Tensor,
            optimizer: torch.optim.Optimizer = optimizers[1],
            schedule: torch.optim.lr_scheduler.LRScheduler = copied,
        ) -> None:
            optimizer.zero_grad()
            objective.backward()
            optimizer.step()
            schedule.step()

        guide.step_online(optimizers[0], schedule)
        torch.manual_seed(1)
        loss = FilteringELBO().differentiable_loss(model, guide, x)
        torch.manual_seed(1)
        theta, _ = written_out(model, other, x, learn)
        torch.testing.assert_close([*guide.parameters()], [*other.parameters()])
        torch.testing.assert_close(loss.detach(), theta.detach())
        parameters = [*model.parameters()]
        torch.testing.assert_close(grad(loss, parameters), grad(theta, parameters))
        assert schedule.last_epoch == TIME
        assert all(p.grad is None for p in guide.parameters())


def test_the_network_stands_still_in_evaluation() -> None:
    model, guide = make("split")
    guide.step_online(torch.optim.SGD(guide.parameters(), lr=1.0))
    before = [p.detach().clone() for p in guide.parameters()]
    FilteringELBO().loss(model, guide, frames())
    guide.eval()
    FilteringELBO().differentiable_loss(model, guide, frames()).backward()
    assert all(map(torch.equal, before, guide.parameters()))
    guide.train()
    guide.step_online(None)
    loss = FilteringELBO().differentiable_loss(model, guide, frames())
    assert all(map(torch.equal, before, guide.parameters()))
    assert all(g.abs().sum() > 0 for g in grad(loss, [*guide.parameters()]))
    with pytest.raises(ValueError, match="step_online needs a guide with stop_gradients=True"):
        _, through = make("split", stop_gradients=False)
        through.step_online(torch.optim.SGD(through.parameters(), lr=1.0))


class Interrupt(Callback):
    def __init__(self, step: int) -> None:
        self.step = step

    def on_step(self, context: Context) -> None:
        if context.step == self.step:
            raise KeyboardInterrupt


@pytest.mark.filterwarnings("ignore:parameters that the optimizer does not hold")
def test_a_resumed_run_has_the_networks_optimizer_too(tmp_path: Path) -> None:
    def run(stop_at: int = -1, folder: Path | None = None, resume: bool = False) -> SequenceLoss:
        model, guide = make("split")
        optimizer = torch.optim.Adam(guide.parameters(), lr=0.01)
        guide.step_online(optimizer, torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.99))
        loss = SequenceLoss(model, guide, FilteringELBO())
        fit(
            loss,
            [Batch(frames()), Batch(2 * frames())],
            [Batch(frames())],
            epochs=3,
            optimizer=torch.optim.Adam(model.parameters(), lr=0.01),
            callbacks=[Interrupt(stop_at)],
            checkpoint_dir=folder,
            checkpoint_every=1 if folder else None,
            resume=resume,
            progress=False,
        )
        return loss

    whole = run()
    with pytest.raises(KeyboardInterrupt):
        run(4, tmp_path)
    again = run(folder=tmp_path, resume=True)
    torch.testing.assert_close([*again.parameters()], [*whole.parameters()], rtol=0, atol=0)
    states = [loss.guide.get_extra_state() for loss in (again, whole)]
    assert states[0]["schedule"] == states[1]["schedule"]
    assert states[1]["schedule"]["last_epoch"] == 6 * TIME
    moments = [state["optimizer"]["state"][0]["exp_avg"] for state in states]
    assert torch.equal(*moments) and moments[0].abs().sum() > 0


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("particles", [None, 4])
@pytest.mark.parametrize("guide", ["avf", "vfem"])
def test_the_model_learns_from_draws_that_are_constants(
    kind: str, guide: str, particles: int | None
) -> None:
    """Its gradient, also of the importance-weighted bound, at draws noted in a first pass."""
    model, made = make(kind)
    made = made if guide == "avf" else VariationalEM(model, 3)
    x, p = frames(), model.parts
    elbo = IWAE(particles) if particles else FilteringELBO()
    torch.manual_seed(1)
    loss = elbo.differentiable_loss(model, made, x)
    torch.manual_seed(1)
    shape = Size((particles, BATCH) if particles else (BATCH,))
    drawn = noted(made, x, shape)
    h, total = p.h_0.expand(*shape, -1), torch.zeros(shape).double()
    for t, (loc, scale, z) in enumerate(drawn):
        q = dist.Normal(loc, scale)
        nats = q.log_prob(z) - p.z(h).log_prob(z) if particles else kl_divergence(q, p.z(h))
        x_t = x[:, t].expand(*shape, FRAME)
        total = total + nats.sum(-1) - p.x(h, z).log_prob(x_t).sum(-1)
        h = p.after(h, z, x_t)
    bound = torch.logsumexp(-total, 0) - torch.tensor(4.0).log() if particles else -total
    torch.testing.assert_close(loss.detach(), -bound.sum().detach())
    parameters = [*model.parameters()]
    torch.testing.assert_close(grad(loss, parameters), grad(-bound.sum(), parameters))


def noted(guide: FilteringGuide, x: Tensor, shape: Size) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Location, scale and draw of each step, as constants."""
    state, found = guide.initial(shape), []
    for frame in guide.frames(x, None, None, state, shape)[0]:
        step = guide.advance(state, frame, shape)
        (site,), state = step.sites, step.state
        q = site.posterior
        found.append(tuple(v.detach() for v in (q.mean, q.base_dist.scale, site.value)))
    return found


@pytest.mark.parametrize("kind", MODELS)
def test_stock_pyro_differentiates_through_time(kind: str) -> None:
    model, guide = make(kind)
    Trace_ELBO().differentiable_loss(model, guide, frames()).backward()
    for parameter in (*model.parameters(), *guide.parameters()):
        assert torch.isfinite(parameter.grad).all() and parameter.grad.abs().sum() > 0
