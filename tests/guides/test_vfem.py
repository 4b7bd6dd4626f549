"""Variational EM: gradient descent on the free energy of each step."""

from __future__ import annotations

from typing import Any

import pyro.distributions as dist
import pytest
import torch
from torch import Size, Tensor
from torch.distributions import kl_divergence

from pyro_seq.guides import Bootstrap, FilteringGuide, VariationalEM
from pyro_seq.inference import FilteringELBO
from pyro_seq.inference.filtering import filter_sequences
from tests.guides.unseen_model import Traffic, traffic
from tests.inference.pairs import LinearStep, SplitLinearStep, linear_batch


def first_posterior(guide: FilteringGuide, x: Tensor, mask: Tensor | None = None) -> Any:  # noqa: ANN401
    """q of the first step."""
    shape = Size(x.shape[:1])
    state = guide.initial(shape)
    (frame, *_), _ = guide.frames(x, mask, None, state, shape)
    (site,) = guide.advance(state, frame, shape).sites
    return site.posterior


def optimised(
    model: LinearStep, x: Tensor, steps: int, samples: int, rate: float, optimizer: str
) -> tuple[Tensor, Tensor]:
    """Location and log scale by torch's own optimizers, the rate falling to a tenth."""
    p = model.parts
    loc = p.ahead(p.start, None).detach().expand(len(x), -1).clone().requires_grad_()
    log_scale = p.q.detach().log().expand(len(x), -1).clone().requires_grad_()
    prior = dist.Normal(loc.detach().clone(), p.q.detach())
    if optimizer == "adam":
        made: Any = torch.optim.Adam([loc, log_scale], lr=rate, betas=(0.9, 0.99), eps=1e-8)
    else:
        made = torch.optim.SGD([loc, log_scale], lr=rate)
    for number in range(steps):
        made.param_groups[0]["lr"] = rate * (1 - 0.9 * number / max(steps - 1, 1))
        made.zero_grad()
        total = torch.zeros(()).double()
        for _ in range(samples):
            q = dist.Normal(loc, log_scale.exp())
            z = q.rsample()
            nats = dist.Normal(z @ p.C.mT, p.r).log_prob(x[:, 0]).sum()
            total = total + (kl_divergence(q, prior).sum() - nats) / samples
        total.backward(inputs=[loc, log_scale])
        made.step()
    return loc.detach(), log_scale.detach()


@pytest.mark.parametrize("kind", [LinearStep, SplitLinearStep])
@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
@pytest.mark.parametrize(("steps", "samples"), [(1, 1), (6, 1), (4, 3)])
def test_the_descent_is_that_of_torch(
    kind: type, optimizer: str, steps: int, samples: int
) -> None:
    model = kind()
    x = linear_batch(model, 5, 2).x
    guide = VariationalEM(
        model, steps, rate=0.07, optimizer=optimizer, samples=samples, units="own"
    )
    torch.manual_seed(0)
    q = first_posterior(guide, x)
    torch.manual_seed(0)
    loc, log_scale = optimised(model, x, steps, samples, 0.07, optimizer)
    torch.testing.assert_close(q.mean.detach(), loc)
    torch.testing.assert_close(q.stddev.log().detach(), log_scale)


def test_it_can_begin_at_zero() -> None:
    model = LinearStep()
    x = linear_batch(model, 5, 2).x
    q = first_posterior(VariationalEM(model, 1, rate=1e-9, start="zeros"), x)
    torch.testing.assert_close(q.mean, torch.zeros(5, 2).double(), rtol=0, atol=1e-6)
    torch.testing.assert_close(q.stddev, torch.ones(5, 2).double(), rtol=0, atol=1e-6)


def test_a_missing_frame_leaves_the_prior() -> None:
    model = LinearStep()
    x = linear_batch(model, 5, 2).x
    mask = torch.ones(5, 2, dtype=torch.bool)
    mask[3, 0] = False
    q = first_posterior(VariationalEM(model, 5), x, mask)
    prior = model.parts.ahead(model.parts.start, None)
    assert torch.equal(q.mean[3], prior) and not torch.isclose(q.mean[0], prior).any()


def test_more_iterations_lower_the_free_energy_of_an_unseen_model() -> None:
    torch.manual_seed(0)
    model = Traffic()
    sequences = traffic(batch=20)
    found = []
    for guide in (
        Bootstrap(model),
        VariationalEM(model, 10, rate=0.03),
        VariationalEM(model, 60, rate=0.03),
    ):
        torch.manual_seed(1)
        with torch.no_grad():
            terms = filter_sequences(guide, *sequences, particles=5)
        found.append(float(terms.free_energy.sum((0, 2)).median()))
    assert found[0] > found[1] > found[2]


def test_it_has_nothing_to_learn_and_differentiates_no_inner_step() -> None:
    model = LinearStep()
    guide = VariationalEM(model, 3)
    x = linear_batch(model, 5, 2).x
    assert not [*guide.parameters()]
    FilteringELBO()(model, guide)(x).backward()
    first = model.parts.C.grad.clone()
    assert first.isfinite().all() and first.abs().sum() > 0
    q = first_posterior(guide, x)
    assert not q.mean.requires_grad and not q.stddev.requires_grad


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"optimizer": "newton"}, "optimizer must be one of adam, sgd; got 'newton'"),
        ({"start": "here"}, "start must be one of prior, zeros; got 'here'"),
        ({"iterations": 0}, "iterations must be at least 1; got 0"),
        ({"samples": 0}, "samples must be at least 1; got 0"),
        ({"rate": 0.0}, "rate must be positive; got 0"),
    ],
)
def test_bad_options_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        VariationalEM(LinearStep(), **options)
