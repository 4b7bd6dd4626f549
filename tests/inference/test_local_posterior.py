"""On a linear-Gaussian model the local posterior p(z_t | z_{t-1}, x_t) is known, and reached."""

from __future__ import annotations

import pyro
import pytest
import torch
from torch import Size, Tensor
from torch.distributions import kl_divergence

from pyro_seq.guides import AVF, Bootstrap, VariationalEM
from pyro_seq.guides.filtering import FilteringGuide
from pyro_seq.inference import FilteringELBO
from tests.inference.pairs import LinearStep, SplitLinearStep, linear_batch

NEAR = 0.02
Linear = LinearStep | SplitLinearStep


def gap(model: Linear, guide: FilteringGuide, x: Tensor) -> float:
    """Mean over steps of KL(q || p(z_t | z_{t-1}, x_t)), along the guide's own draws; nats."""
    shape = Size(x.shape[:1])
    state, gaps = guide.initial(shape), []
    torch.manual_seed(0)
    with torch.no_grad(), pyro.validation_enabled(False):
        for frame in guide.frames(x, None, None, state, shape)[0]:
            step = guide.advance(state, frame, shape)
            (site,), state = step.sites, step.state
            exact = model.parts.exact(site.prior.base_dist.loc, frame.x)
            gaps.append(kl_divergence(site.posterior, exact))
    return float(torch.stack(gaps).mean())


def gaps_by_iteration(model: Linear, guide: AVF, x: Tensor, most: int) -> list[float]:
    """After 1, 2, ... iterations of one trained network."""
    found = []
    for guide.iterations in range(1, most + 1):
        found.append(gap(model, guide, x))
    return found


def train(model: Linear, guide: AVF, steps: int = 300, batch: int = 32, time: int = 2) -> None:
    """The network alone; the model is the one that made the data."""
    optimizer = torch.optim.Adam(guide.parameters(), lr=0.02)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps, eta_min=2e-4)
    x = linear_batch(model, 40 * batch, time).x
    with pyro.validation_enabled(False):
        for _ in range(steps):
            some = x[torch.randint(len(x), (batch,))]
            optimizer.zero_grad()
            loss = FilteringELBO().differentiable_loss(model, guide, some)
            (loss / batch).backward()
            optimizer.step()
            schedule.step()


def avf(model: Linear, iterations: int, *encodes: str, width: int = 32, **options: object) -> AVF:
    torch.manual_seed(0)
    return AVF(
        model,
        iterations,
        hidden=[width],
        encodes=("parameters", "gradients", *encodes),
        normalise="log",
        **options,
    ).double()


@pytest.fixture
def model() -> SplitLinearStep:
    return SplitLinearStep()


@pytest.fixture
def frames(model: SplitLinearStep) -> Tensor:
    return linear_batch(model, 100, 3).x


def test_the_task_is_far_from_done_at_the_prior(model: SplitLinearStep, frames: Tensor) -> None:
    assert gap(model, Bootstrap(model), frames) > 5


def test_gradient_descent_reaches_the_local_posterior(
    model: SplitLinearStep, frames: Tensor
) -> None:
    some = frames[:30]
    found = [gap(model, VariationalEM(model, n, samples=4), some) for n in (1, 5, 20, 100)]
    assert found == sorted(found, reverse=True)
    assert found[-1] <= NEAR


def test_the_network_reaches_the_local_posterior(model: SplitLinearStep, frames: Tensor) -> None:
    guide = avf(model, 2, "observation", "state")
    train(model, guide)
    found = gaps_by_iteration(model, guide, frames, 2)
    assert found[1] <= min(found[0], NEAR)


def test_each_iteration_by_gradients_alone_comes_nearer(
    model: SplitLinearStep, frames: Tensor
) -> None:
    """A network that sees the frame through the gradient only, also once more than trained."""
    guide = avf(model, 3)
    train(model, guide, steps=200)
    found = [gap(model, Bootstrap(model), frames), *gaps_by_iteration(model, guide, frames, 4)]
    assert found == sorted(found, reverse=True)
    assert found[1] > 2 * found[2] and found[3] < 0.2


@pytest.mark.slow
@pytest.mark.parametrize("kind", [LinearStep, SplitLinearStep])
@pytest.mark.parametrize("update", ["highway", "sgd"])
@pytest.mark.parametrize("stop_gradients", [False, True])
def test_every_way_of_training_reaches_it(kind: type, update: str, stop_gradients: bool) -> None:
    model = kind()
    frames = linear_batch(model, 100, 3).x
    gaps = []
    for iterations in (1, 2):
        guide = avf(
            model,
            iterations,
            "observation",
            "state",
            width=64,
            update=update,
            stop_gradients=stop_gradients,
            samples=1 if update == "highway" else 4,
        )
        train(model, guide, steps=1000, batch=64)
        gaps.append(gap(model, guide, frames))
    assert max(gaps) <= NEAR


@pytest.mark.slow
def test_gradient_descent_reaches_it_in_one_piece_too() -> None:
    model = LinearStep()
    found = gap(model, VariationalEM(model, 100, samples=4), linear_batch(model, 100, 3).x)
    assert found <= NEAR
