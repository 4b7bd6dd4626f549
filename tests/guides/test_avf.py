"""Amortized variational filtering: what the network reads, where it starts, several latents.

The gradients of training are held to the algorithm written out in tests/inference.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Size, Tensor, nn
from torch.autograd import grad
from torch.distributions import kl_divergence

from pyro_seq.guides import AVF, FilteringGuide, VariationalEM
from pyro_seq.guides.context import Frame, StepContext
from pyro_seq.guides.local import LIMIT, LocalProblem
from pyro_seq.inference import FilteringELBO
from pyro_seq.inference.filtering import filter_sequences
from pyro_seq.models import SplitStepModel, StepModel
from pyro_seq.ops.trees import detach
from tests.guides.unseen_model import Traffic, traffic
from tests.inference.pairs import LinearStep, SplitLinearStep, linear_batch

Linear = LinearStep | SplitLinearStep
ALL = ("parameters", "gradients", "observation", "errors", "state")


def record(guide: AVF) -> dict[str, Tensor]:
    """What goes into the parts of the first layer, by name, in the last call."""
    read: dict[str, Tensor] = {}
    for name, layer in {"first": guide.network.first, **guide.network.others}.items():
        layer.register_forward_hook(
            lambda _, inputs, __, name=name: read.update({name: inputs[0].detach()})
        )
    return read


@pytest.mark.parametrize("kind", [LinearStep, SplitLinearStep])
def test_the_network_reads_what_it_is_told_to(kind: type) -> None:
    """At the first step and iteration, against the model's own formulas."""
    model: Linear = kind(controls=1)
    guide = AVF(model, 1, hidden=[4], encodes=ALL, normalise="none", units="own").double()
    x, _, u = linear_batch(model, 5, 1)
    read = record(guide)
    torch.manual_seed(0)
    filter_sequences(guide, x, None, u)
    torch.manual_seed(0)
    p = model.parts
    prior = dist.Normal(p.ahead(p.start.expand(5, -1), u[:, 0]), p.q)
    leaves = [prior.mean.detach().requires_grad_(), prior.stddev.log().detach().requires_grad_()]
    q = dist.Normal(leaves[0], leaves[1].exp())
    z = q.rsample()
    frame = dist.Normal(z @ p.C.mT, p.r)
    slopes = grad(-frame.log_prob(x[:, 0]).sum(), leaves)  # at the prior the divergence is flat
    error = torch.cat([(x[:, 0] - frame.mean) / p.r**2, (z - prior.mean) / p.q**2], -1)
    expected = {
        "observation": x[:, 0],
        "state": torch.cat([p.start.expand(5, -1), u[:, 0]], -1),
        "errors": error.sign() * error.abs().log1p(),
        "first": torch.cat([*leaves, *slopes], -1),
    }
    assert read.keys() == expected.keys()
    for name, part in expected.items():
        torch.testing.assert_close(read[name].reshape(5, -1), part.detach())


@pytest.mark.parametrize("encodes", [("gradients",), ("observation",), ("errors", "state"), ALL])
@pytest.mark.parametrize("normalise", ["layer", "log"])
def test_every_choice_of_inputs_trains(encodes: tuple[str, ...], normalise: str) -> None:
    model = Traffic()
    guide = AVF(model, 2, hidden=[6], encodes=encodes, normalise=normalise)
    x, mask, u = traffic()
    FilteringELBO()(model, guide)(x, mask, u).backward()
    for name, parameter in guide.named_parameters():
        unread = name == "network.first.weight" and not {"parameters", "gradients"} & {*encodes}
        assert parameter.grad.isfinite().all()
        assert (parameter.grad.abs().sum() > 0) != unread, name


def problem(model: StepModel, x_t: Tensor, **options: Any) -> LocalProblem:  # noqa: ANN401
    shape = Size(x_t.shape[:1])
    control = x_t.new_zeros(*shape, model.controls) if model.controls else None
    frame = Frame(x_t, control=control)
    return LocalProblem(StepContext(model, model.initial_state(shape), frame, shape), **options)


def test_it_starts_at_the_prior_or_at_zero() -> None:
    model = Traffic()
    x = traffic()[0][:, 0]
    at_prior = problem(model, x)
    at_prior.begin()
    spread = at_prior.beginning["spread.concentration"]
    torch.testing.assert_close(spread, torch.full((4, 2), 2.0).log())
    at_zero = problem(model, x, start="zeros")
    at_zero.begin()
    assert all((value == 0).all() for value in at_zero.beginning.values())


def test_parameters_stay_within_bounds_of_the_start() -> None:
    inner = problem(Traffic(), traffic()[0][:, 0])
    inner.begin()
    far = {name: value + 100 for name, value in inner.beginning.items()}
    for name, value in inner.bound(far).items():
        moved = value - inner.beginning[name]
        assert (moved == 100 if name.endswith("loc") else (moved - LIMIT).abs() < 1e-5).all(), name


def test_several_draws_make_the_mean_of_their_gradients() -> None:
    model = LinearStep()
    x = linear_batch(model, 5, 1).x[:, 0]
    torch.manual_seed(0)
    inner = problem(model, x, samples=3)
    together = inner.begin().gradients
    torch.manual_seed(0)
    one = problem(model, x)
    single = [one.begin().gradients for _ in range(3)]
    for name, value in together.items():
        torch.testing.assert_close(value, sum(each[name] for each in single) / 3)


class Nested(SplitStepModel):
    """Two latents, the second of a location and a scale that the first one sets."""

    class State(NamedTuple):
        y: Tensor

    class Latents(NamedTuple):
        y: Tensor
        z: Tensor

    reads_frames = False

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.tensor([1.3, -0.7]))
        self.b = nn.Parameter(torch.tensor([0.5, 1.5]))
        self.c = nn.Parameter(torch.tensor([0.8, 1.1]))

    def begin(self, batch_shape: Size) -> State:
        return self.State(self.a.new_zeros(*batch_shape, 2))

    def latents(self, state: State, u_t: Tensor | None) -> Latents:
        y = pyro.sample("y", dist.Normal(self.c * state.y, 1.0).to_event(1))
        return self.Latents(y, pyro.sample("z", self.second(y).to_event(1)))

    def second(self, y: Tensor) -> dist.Normal:
        return dist.Normal(self.a * y, (self.b * y).exp())

    def emission(self, latents: Latents) -> dist.Distribution:
        return dist.Normal(latents.y + latents.z, 0.5).to_event(1)

    def transition(
        self, state: State, latents: Latents, embedding: None, u_t: Tensor | None
    ) -> State:
        return self.State(latents.y)


def energy(model: Nested, moved: dict[str, Tensor], x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """Free energy of the first step if y has these parameters, and z is moved from its prior."""
    first = dist.Normal(torch.zeros_like(x), 1.0)
    q_y = dist.Normal(moved["y.loc"], moved["y.scale"].exp())
    y = q_y.rsample()
    second = model.second(y)
    q_z = dist.Normal(second.mean + moved["z.loc"], second.stddev * moved["z.scale"].exp())
    z = q_z.rsample()
    divergence = kl_divergence(q_y, first) + kl_divergence(q_z, second)
    return (divergence - dist.Normal(y + z, 0.5).log_prob(x)).sum(-1), {"y": y, "z": z}


@pytest.mark.parametrize("iterations", [1, 3])
def test_a_later_latent_is_moved_from_its_prior(iterations: int) -> None:
    """Value and the network's gradient, the noise drawn in the order of the library."""
    torch.manual_seed(0)
    model = Nested().double()
    guide = AVF(model, iterations, hidden=[5], units="own").double()
    x = torch.randn(4, 1, 2).double()
    torch.manual_seed(1)
    loss = FilteringELBO().differentiable_loss(model, guide, x)
    torch.manual_seed(1)
    fixed = detach(x[:, 0])
    start = {name: torch.zeros(4, 2).double() for name in guide.network.sizes}

    def slope(moved: dict[str, Tensor]) -> dict[str, Tensor]:
        leaves = {name: value.detach().requires_grad_() for name, value in moved.items()}
        total = energy(model, leaves, fixed)[0].sum()
        return dict(zip(leaves, grad(total, [*leaves.values()]), strict=True))

    state = torch.get_rng_state()
    draws = energy(model, start, fixed)[1]
    second = model.second(draws["y"].detach())
    # the numbers that the network reads: those of the first draw's prior
    offset = start | {"z.loc": second.mean.detach(), "z.scale": second.stddev.log().detach()}
    torch.set_rng_state(state)
    gradients, moved, objective = slope(start), start, torch.zeros(()).double()
    for _ in range(iterations):
        numbers = {name: moved[name].detach() + offset[name] for name in moved}
        after = guide.network(numbers, gradients)
        moved = {name: after[name] - offset[name] for name in moved}
        state = torch.get_rng_state()
        gradients = slope(moved)
        torch.set_rng_state(state)
        objective = objective + energy(model, moved, fixed)[0].sum() / iterations
    value, draws = energy(model, moved, fixed)
    torch.testing.assert_close(loss.detach(), value.sum().detach())
    parameters = [*guide.parameters()]
    found = grad(loss, parameters, retain_graph=True)
    torch.testing.assert_close(found, grad(objective, parameters))
    # the model learns from a q and from draws that are constants
    second = model.second(draws["y"].detach())
    q = dist.Normal(second.mean + moved["z.loc"], second.stddev * moved["z.scale"].exp())
    constant = dist.Normal(q.mean.detach(), q.stddev.detach())
    theta = [model.a, model.b]
    expected = grad(kl_divergence(constant, second).sum(), theta)
    torch.testing.assert_close(grad(loss, theta), expected)


@pytest.mark.parametrize(
    "make",
    [
        lambda model: VariationalEM(model, 1, rate=1e-12),
        lambda model: AVF(model, 1, hidden=[4], stop_gradients=False),
        lambda model: AVF(model, 1, hidden=[4]),
    ],
    ids=["vfem", "avf through time", "avf"],
)
def test_where_nothing_moves_a_step_is_drawn_from_its_prior(make: Any) -> None:  # noqa: ANN401
    """The latents' prior densities are those of q, whatever was drawn before."""
    torch.manual_seed(0)
    model = Nested().double()
    guide: FilteringGuide = make(model).double()
    if isinstance(guide, AVF):  # gates that keep all
        with torch.no_grad():
            guide.network.head.weight.zero_()
            guide.network.head.bias[: guide.network.head.bias.numel() // 2] = 0.0
            guide.network.head.bias[guide.network.head.bias.numel() // 2 :] = 40.0
    x = torch.randn(50, 3, 2).double()
    for context in (torch.no_grad(), torch.enable_grad()):
        with context:
            terms = filter_sequences(guide, x)
        assert terms.divergence.abs().max() < 1e-9


class HeavyTailed(StepModel):
    """Neither latent nor frame has a mean, or a variance."""

    class State(NamedTuple):
        z: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(2))

    def initial_state(self, batch_shape: Size) -> State:
        return self.State(self.scale.new_zeros(*batch_shape, 2))

    def step(self, state: State, x_t: Tensor | None, u_t: Tensor | None = None) -> State:
        z = pyro.sample("z", dist.StudentT(1.0, 0.5 * state.z, self.scale.exp()).to_event(1))
        x = pyro.sample("x", dist.Cauchy(z, 1.0).to_event(1), obs=x_t)
        return self.State(0.5 * z + 0.1 * x)


def test_errors_of_distributions_without_moments_are_finite() -> None:
    model = HeavyTailed()
    guide = AVF(model, 2, hidden=[4], encodes=("gradients", "errors"), normalise="log")
    x = 50 * torch.randn(4, 5, 2)
    mask = torch.ones(4, 5, dtype=torch.bool)
    mask[0, 1:3] = False
    loss = FilteringELBO()(model, guide)(x, mask)
    loss.backward()
    assert loss.isfinite() and all(p.grad.isfinite().all() for p in guide.parameters())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"iterations": 0}, "iterations must be at least 1; got 0"),
        ({"samples": 0}, "samples must be at least 1; got 0"),
        ({"start": "posterior"}, "start must be one of prior, zeros; got 'posterior'"),
        ({"units": "metres"}, "units must be one of start, own; got 'metres'"),
        ({"encodes": ("frame",)}, "encodes must be some of parameters, gradients, .*frame"),
        ({"encodes": ()}, r"encodes must be some of .*; got \(\)"),
        ({"encoder": nn.Identity()}, "features must be the size of the encoder's output; got No"),
        ({"update": "newton"}, "update must be one of highway, sgd; got 'newton'"),
    ],
)
def test_bad_options_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        AVF(LinearStep(), **{"hidden": [4], **options})


class Scaled(StepModel):
    """A walk whose latents are measured in another unit; the frames are the same."""

    class State(NamedTuple):
        z: Tensor

    def __init__(self, unit: float) -> None:
        super().__init__()
        self.unit = unit
        self.mix = nn.Parameter(torch.tensor([[1.0, 0.5], [-0.3, 2.0]]))

    def initial_state(self, batch_shape: Size) -> State:
        return self.State(self.mix.new_zeros(*batch_shape, 2))

    def step(self, state: State, x_t: Tensor | None, u_t: None = None) -> State:
        z = pyro.sample("z", dist.Normal(0.9 * state.z, 0.5 * self.unit).to_event(1))
        pyro.sample("x", dist.Normal(z / self.unit @ self.mix.mT, 0.3).to_event(1), obs=x_t)
        return self.State(z)


@pytest.mark.parametrize("kind", ["avf", "avf_sgd", "vfem"])
@pytest.mark.parametrize("units", ["start", "own"])
def test_the_unit_of_the_latents_does_not_matter(kind: str, units: str) -> None:
    """It does not to moves in units of the prior's scale; to the parameters themselves it does."""
    x = torch.randn(3, 4, 2).double()
    losses = []
    for unit in (1.0, 0.01):
        torch.manual_seed(0)
        model = Scaled(unit).double()
        if kind == "vfem":
            guide: Any = VariationalEM(model, 4, units=units)
        else:
            reads, update = ("gradients", "observation"), "sgd" if kind == "avf_sgd" else "highway"
            guide = AVF(model, 3, hidden=[5], update=update, encodes=reads, units=units).double()
        torch.manual_seed(1)
        losses.append(FilteringELBO().loss(model, guide, x))
    assert (losses[1] == pytest.approx(losses[0], rel=1e-9)) == (units == "start")


def test_one_layer_by_its_width() -> None:
    torch.manual_seed(0)
    one = AVF(LinearStep(), hidden=4)
    torch.manual_seed(0)
    other = AVF(LinearStep(), hidden=[4])
    assert all(map(torch.equal, one.network.parameters(), other.network.parameters()))


def test_moves_and_back() -> None:
    inner = problem(Traffic(), traffic()[0][:, 0])
    inner.begin()
    assert all((move == 0).all() for move in inner.moves(inner.beginning).values())
    moves = {name: torch.randn_like(value) for name, value in inner.beginning.items()}
    torch.testing.assert_close(inner.moves(inner.moved(moves)), moves)
