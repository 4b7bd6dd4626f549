"""Closed-form divergences, and the gap of the bound that samples independent marginals."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.distributions import kl_divergence

from tests.distributions.setting import ALGORITHMS, Setting, make_setting
from tests.ops import dense

CASES = [
    ("varying", "none"),
    ("varying", "coordinates"),
    ("kvae", "frames"),
    ("one_step", "frames"),
    ("scalar", "nothing"),
]


def each_kl(setting: Setting, q: dense.Moments, p: dense.Moments) -> Tensor:
    """Dense KL per sequence."""

    def one(_: dense.Model, *parts: Tensor) -> Tensor:
        return dense.kl_divergence(dense.Moments(*parts[:2]), dense.Moments(*parts[2:]))

    return setting.each(one, *q, *p)


def marginal_moments(setting: Setting, moments: dense.Moments) -> dense.Moments:
    """The product of marginals per sequence."""

    def one(_: dense.Model, *parts: Tensor) -> dense.Moments:
        return dense.product_of_marginals(dense.Moments(*parts), setting.time)

    return setting.each(one, *moments)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize(("layout", "mask"), CASES)
def test_product_of_marginals_against_the_joint(layout: str, mask: str, algorithm: str) -> None:
    setting = make_setting(layout, mask)
    posterior = setting.distribution(algorithm).posterior(setting.a)
    joint = setting.dense_posterior()
    right = each_kl(setting, marginal_moments(setting, joint), joint)
    answer = kl_divergence(posterior.marginals(), posterior)
    torch.testing.assert_close(answer, right, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize(("layout", "mask"), CASES)
def test_two_posteriors(layout: str, mask: str, algorithm: str) -> None:
    one, two = make_setting(layout, mask), make_setting(layout, "none", seed=9)
    q, p = (s.distribution(algorithm).posterior(s.a) for s in (one, two))
    right = each_kl(one, one.dense_posterior(), two.dense_posterior())
    torch.testing.assert_close(kl_divergence(q, p), right, rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(kl_divergence(q, q), torch.zeros_like(right), rtol=0, atol=1e-8)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_posterior_against_the_prior(algorithm: str) -> None:
    setting = make_setting("varying", "coordinates")
    d = setting.distribution(algorithm)
    prior = setting.each(lambda model: dense.prior(model, setting.time))
    right = each_kl(setting, setting.dense_posterior(), prior)
    answer = kl_divergence(d.posterior(setting.a), d.latent_prior())
    torch.testing.assert_close(answer, right, rtol=1e-8, atol=1e-8)


def quadratic_mean(function: object, loc: Tensor, cov: Tensor) -> Tensor:
    """Exact mean of a quadratic under independent N(loc_t, cov_t), from 2n points."""
    size = loc.shape[-2] * loc.shape[-1]
    directions = math.sqrt(size) * torch.linalg.cholesky(cov)  # columns, (*batch, time, z, z)
    values = []
    for t in range(loc.shape[-2]):
        for column in range(loc.shape[-1]):
            step = torch.zeros_like(loc)
            step[..., t, :] = directions[..., t, :, column]
            values += [function(loc + step), function(loc - step)]
    return torch.stack(values).mean(0)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize(("layout", "mask"), CASES)
def test_the_marginal_bound_is_loose_by_that_kl(layout: str, mask: str, algorithm: str) -> None:
    setting = make_setting(layout, mask)
    d = setting.distribution(algorithm)
    posterior = d.posterior(setting.a)
    q = posterior.marginals()

    def estimate(z: Tensor) -> Tensor:
        return d.log_joint(z, setting.a) - q.log_prob(z)

    with torch.no_grad():
        bound = quadratic_mean(estimate, q.mean, q.base_dist.covariance_matrix)
        gap = d.log_prob(setting.a) - bound
        torch.testing.assert_close(gap, kl_divergence(q, posterior), rtol=1e-8, atol=1e-8)
    assert (gap > (0 if setting.time > 1 else -1e-9)).all()
