"""Distributions side by side say what each of them says."""

from __future__ import annotations

from typing import Any

import pyro.distributions as dist
import pytest
import torch
from torch import Tensor
from torch.distributions import kl_divergence

from pyro_seq.distributions import DiscretizedNormal
from pyro_seq.distributions.parameters import PriorWhere
from pyro_seq.distributions.stacking import stack_distributions, stack_pairs

TIME, BATCH, SIZE = 4, 3, 2


def r(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64)


def matrix() -> Tensor:
    return torch.linalg.cholesky(torch.eye(SIZE).double() + 0.1)


FAMILIES = {
    "normal": lambda: dist.Normal(r(BATCH, SIZE), r(BATCH, SIZE).exp()).to_event(1),
    "shared scale": lambda: dist.Normal(r(BATCH, SIZE), 2.0).to_event(1),
    "gamma": lambda: dist.Gamma(r(BATCH).exp(), r(BATCH).exp()),
    "beta": lambda: dist.Beta(r(BATCH, SIZE).exp(), r(BATCH, SIZE).exp()).to_event(1),
    "lognormal": lambda: dist.LogNormal(r(BATCH, SIZE), r(BATCH, SIZE).exp()).to_event(1),
    "full": lambda: dist.MultivariateNormal(r(BATCH, SIZE), scale_tril=matrix()),
    "covariance": lambda: dist.MultivariateNormal(r(BATCH, SIZE), matrix() @ matrix().mT),
    "categorical": lambda: dist.Categorical(probs=r(BATCH, SIZE).softmax(-1)),
    "matrices": lambda: dist.Laplace(r(BATCH, SIZE, 2), 1.0).to_event(2),
}


@pytest.mark.parametrize("name", FAMILIES)
def test_densities_and_divergences(name: str) -> None:
    torch.manual_seed(0)
    posteriors, priors = ([FAMILIES[name]() for _ in range(TIME)] for _ in range(2))
    values = [q.sample() for q in posteriors]
    pair = stack_pairs(posteriors, priors)
    assert pair is not None
    posterior, prior = pair
    assert posterior.batch_shape == (TIME, BATCH) and type(posterior) is type(posteriors[0])
    each = torch.stack([q.log_prob(z) for q, z in zip(posteriors, values, strict=True)])
    torch.testing.assert_close(posterior.log_prob(torch.stack(values)), each)
    each = torch.stack([kl_divergence(q, p) for q, p in zip(posteriors, priors, strict=True)])
    torch.testing.assert_close(kl_divergence(posterior, prior), each)


def test_gradients_reach_what_was_stacked() -> None:
    loc = torch.zeros(TIME, BATCH, SIZE, dtype=torch.float64, requires_grad=True)
    q = stack_distributions([dist.Normal(each, 1.0).to_event(1) for each in loc])
    q.log_prob(torch.ones(TIME, BATCH, SIZE)).sum().backward()
    torch.testing.assert_close(loc.grad, torch.ones_like(loc))


def test_the_prior_stands_where_nothing_was_observed() -> None:
    torch.manual_seed(0)
    posteriors, priors = ([FAMILIES["full"]() for _ in range(TIME)] for _ in range(2))
    missing = torch.rand(TIME, BATCH) > 0.5
    mixed = [PriorWhere(*parts) for parts in zip(missing, posteriors, priors, strict=True)]
    pair = stack_pairs(mixed, priors)
    assert pair is not None
    each = torch.stack([kl_divergence(q, p) for q, p in zip(mixed, priors, strict=True)])
    found = kl_divergence(*pair)
    torch.testing.assert_close(found, each)
    assert (found[missing] == 0).all()


def normal(*batch: int) -> Any:  # noqa: ANN401
    return dist.Normal(torch.zeros(batch), 1.0)


@pytest.mark.parametrize(
    "pair",
    [
        (normal(BATCH), dist.Laplace(torch.zeros(BATCH), 1.0)),
        (normal(BATCH), normal(2)),
        (normal(BATCH, SIZE).to_event(1), normal(BATCH, SIZE)),
        (normal(BATCH, SIZE).to_event(1), normal(BATCH, SIZE).to_event(2)),
        (normal(BATCH).mask(torch.ones(BATCH) > 0), normal(BATCH).mask(torch.ones(BATCH) > 0)),
        (dist.Uniform(torch.zeros(BATCH), 1.0), dist.Uniform(torch.zeros(BATCH), 2.0)),
        (dist.Delta(torch.zeros(BATCH)), dist.Delta(torch.ones(BATCH))),
        tuple(DiscretizedNormal(torch.zeros(BATCH), torch.ones(BATCH), w) for w in (1.0, 2.0)),
        tuple(
            dist.RelaxedBernoulliStraightThrough(torch.tensor(t), logits=torch.zeros(BATCH))
            for t in (1.0, 2.0)
        ),
    ],
)
def test_what_does_not_go_together(pair: tuple[Any, Any]) -> None:
    assert stack_distributions(pair) is None
