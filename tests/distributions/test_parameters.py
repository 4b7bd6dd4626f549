"""Every reparametrised family of Pyro as a vector of free parameters, and back."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pyro.distributions as dist
import pytest
import torch
from pyro.distributions import transforms
from torch import Size, Tensor
from torch.distributions import kl_divergence

from pyro_seq.distributions.parameters import (
    PriorWhere,
    divergence,
    free_parameters,
    is_location,
    is_unbounded,
    prior_where,
    with_parameters,
)

pytestmark = pytest.mark.filterwarnings("ignore:Singular sample:UserWarning")

HALF = torch.tensor(0.5).double()


def r(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.double)


def p(*shape: int) -> Tensor:
    return torch.rand(*shape, dtype=torch.double) + 0.5


def tril(*batch: int) -> Tensor:
    root = r(*batch, 2, 2)
    return torch.linalg.cholesky(root @ root.mT + torch.eye(2).double())


SEEN = torch.tensor([True, False, True])
FAMILIES: dict[str, Callable[[], Any]] = {
    "AVFMultivariateNormal": lambda: dist.AVFMultivariateNormal(r(2), tril(), r(2, 1, 2)),
    "AsymmetricLaplace": lambda: dist.AsymmetricLaplace(r(3), p(3), p(3)),
    "Beta": lambda: dist.Beta(p(3), p(3)),
    "Cauchy": lambda: dist.Cauchy(r(3), p(3)),
    "Chi2": lambda: dist.Chi2(p(3)),
    "ContinuousBernoulli": lambda: dist.ContinuousBernoulli(logits=r(3)),
    "ContinuousBernoulli, probs": lambda: dist.ContinuousBernoulli(probs=p(3) - 0.5),
    "Dirichlet": lambda: dist.Dirichlet(p(3, 4)),
    "Exponential": lambda: dist.Exponential(p(3)),
    "FisherSnedecor": lambda: dist.FisherSnedecor(p(3) + 2, p(3) + 2),
    "FoldedDistribution": lambda: dist.FoldedDistribution(dist.Normal(r(3), p(3))),
    "Gamma": lambda: dist.Gamma(p(3), p(3)),
    "Gumbel": lambda: dist.Gumbel(r(3), p(3)),
    "HalfCauchy": lambda: dist.HalfCauchy(p(3)),
    "HalfNormal": lambda: dist.HalfNormal(p(3)),
    "InverseGamma": lambda: dist.InverseGamma(p(3), p(3)),
    "Kumaraswamy": lambda: dist.Kumaraswamy(p(3), p(3)),
    "Laplace": lambda: dist.Laplace(r(3), p(3)),
    "LogNormal": lambda: dist.LogNormal(r(3, 2), p(3, 2)).to_event(1),
    "Logistic": lambda: dist.Logistic(r(3), p(3)),
    "LogisticNormal": lambda: dist.LogisticNormal(r(3, 2), p(3, 2)),
    "LowRank": lambda: dist.LowRankMultivariateNormal(r(3, 4), r(3, 4, 2), p(3, 4)),
    "MixtureOfDiagNormals": lambda: dist.MixtureOfDiagNormals(r(3, 4, 2), p(3, 4, 2), r(3, 4)),
    "MultivariateNormal": lambda: dist.MultivariateNormal(r(3, 2), scale_tril=tril(3)),
    "covariance": lambda: dist.MultivariateNormal(
        r(3, 2), covariance_matrix=2 * torch.eye(2).double()
    ),
    "precision": lambda: dist.MultivariateNormal(r(3, 2), precision_matrix=torch.eye(2).double()),
    "shared scale_tril": lambda: dist.MultivariateNormal(r(3, 2), scale_tril=tril()),
    "MultivariateStudentT": lambda: dist.MultivariateStudentT(p(3) + 3, r(3, 2), tril(3)),
    "Normal": lambda: dist.Normal(r(3), p(3)),
    "OMTMultivariateNormal": lambda: dist.OMTMultivariateNormal(r(2), tril()),
    "ProjectedNormal": lambda: dist.ProjectedNormal(r(3, 3)),
    "RelaxedBernoulli": lambda: dist.RelaxedBernoulli(HALF, logits=r(3)),
    "RelaxedOneHot": lambda: dist.RelaxedOneHotCategorical(HALF, logits=r(3, 4)),
    "RelaxedOneHot, probs": lambda: dist.RelaxedOneHotCategorical(HALF, probs=p(3, 4)),
    "SkewLogistic": lambda: dist.SkewLogistic(r(3), p(3), p(3)),
    "SoftAsymmetricLaplace": lambda: dist.SoftAsymmetricLaplace(r(3), p(3), p(3), p(3)),
    "SoftLaplace": lambda: dist.SoftLaplace(r(3), p(3)),
    "StudentT": lambda: dist.StudentT(p(3) + 3, r(3), p(3)),
    "Weibull": lambda: dist.Weibull(p(3), p(3)),
    "Wishart": lambda: torch.distributions.Wishart(p(3) + 5, scale_tril=tril(3)),
    "sigmoid": lambda: dist.TransformedDistribution(
        dist.Normal(r(3, 2), p(3, 2)),
        [transforms.SigmoidTransform(), transforms.AffineTransform(1.0, 2.0)],
    ).to_event(1),
    "spline": lambda: dist.TransformedDistribution(
        dist.Normal(r(3, 2), p(3, 2)).to_event(1), [transforms.Spline(2).double()]
    ),
    "event": lambda: dist.Normal(r(3, 2), p(2)).to_event(1),
    "masked": lambda: dist.Normal(r(3, 2), p(3, 2)).to_event(1).mask(SEEN),
    "masked inside": lambda: dist.Gamma(p(3, 2), p(3, 2)).mask(SEEN.unsqueeze(-1)).to_event(1),
    "expanded": lambda: dist.Normal(r(2), p(2)).to_event(1).expand([3]),
    "expanded wrapper": lambda: dist.SkewLogistic(r(1), p(1), p(1)).expand([3]),
    "expanded before": lambda: dist.Normal(r(1, 2), p(2)).expand([3, 2]).to_event(1),
}


def moved(prior: Any, by: float = 0.1) -> tuple[dict[str, Tensor], Any]:  # noqa: ANN401
    """Leaves away from the prior's parameters, and the family's member there."""
    leaves = {
        name: (value + by * torch.randn_like(value)).detach().requires_grad_()
        for name, value in free_parameters(prior).items()
    }
    return leaves, with_parameters(prior, leaves)


@pytest.mark.parametrize("name", FAMILIES)
def test_round_trip(name: str) -> None:
    """The prior's parameters give the prior, and those of another member give that one."""
    prior = FAMILIES[name]()
    leaves, other = moved(prior)
    for member in (prior, other):
        free = free_parameters(member)
        again = with_parameters(prior, free)
        assert (again.batch_shape, again.event_shape) == (prior.batch_shape, prior.event_shape)
        x = prior.rsample().detach()
        torch.testing.assert_close(again.log_prob(x), member.log_prob(x))
        for value in free.values():
            assert value.shape[:-1] == prior.batch_shape
            assert value.isfinite().all()
    assert not torch.allclose(other.log_prob(x).sum(), prior.log_prob(x).sum())
    assert {*free_parameters(other)} == {*leaves}


@pytest.mark.parametrize("name", FAMILIES)
def test_gradients_flow(name: str) -> None:
    """A draw carries a finite gradient, not zero, to every parameter that it depends on."""
    prior = FAMILIES[name]()
    leaves, posterior = moved(prior)
    z = posterior.rsample()
    total = (posterior.log_prob(z) - prior.log_prob(z)).sum() + z.square().sum()
    for key, grad in zip(leaves, torch.autograd.grad(total, [*leaves.values()]), strict=True):
        assert grad.isfinite().all(), key
        assert grad.abs().sum() > 0, key


@pytest.mark.parametrize("name", FAMILIES)
def test_divergence_from_oneself_is_zero(name: str) -> None:
    prior = FAMILIES[name]()
    same = with_parameters(prior, free_parameters(prior))
    z = same.rsample()
    for analytic in (False, True):
        nats = divergence(same, prior, z, analytic)
        torch.testing.assert_close(nats, torch.zeros_like(nats), atol=1e-9, rtol=0.0)


@pytest.mark.parametrize(
    ("prior", "other"),
    [
        (dist.Normal(torch.zeros(3).double(), 1.0), dist.Normal(torch.ones(3).double(), 0.5)),
        (dist.Gamma(p(3), p(3)), dist.Gamma(p(3), p(3))),
        (dist.Beta(p(3), p(3)), dist.Beta(p(3), p(3))),
        (dist.LogNormal(r(3), p(3)), dist.LogNormal(r(3), p(3))),
    ],
)
def test_closed_form_is_the_mean_of_the_draws(prior: Any, other: Any) -> None:  # noqa: ANN401
    posterior = with_parameters(prior, free_parameters(other))
    z = posterior.rsample(Size([40_000]))
    draws = divergence(posterior, prior, z, analytic=False)
    error = (draws.mean(0) - divergence(posterior, prior, z)).abs()
    assert (error < 5 * draws.std(0) / 200).all()


MOVING: dict[str, Callable[[], Any]] = {
    "Uniform": lambda: dist.Uniform(-p(3), p(3)),
    "Uniform, event": lambda: dist.Uniform(r(3, 2), 3 + p(3, 2)).to_event(1),
    "Pareto": lambda: dist.Pareto(p(3), p(3)),
    "AffineBeta": lambda: dist.AffineBeta(p(3), p(3), r(3), p(3)),
}


@pytest.mark.parametrize("name", MOVING)
def test_a_support_that_moves_stays_the_prior_s(name: str) -> None:
    """q is another family on the prior's support, whatever its parameters."""
    prior = MOVING[name]()
    assert {n: v.abs().max() for n, v in free_parameters(prior).items()} == {"loc": 0, "scale": 0}
    leaves, posterior = moved(prior, by=2.0)
    assert (posterior.batch_shape, posterior.event_shape) == (
        prior.batch_shape,
        prior.event_shape,
    )
    z = posterior.rsample(Size([50]))
    assert prior.support.check(z).all()
    total = (posterior.log_prob(z) - prior.log_prob(z)).sum()
    for grad in torch.autograd.grad(total, [*leaves.values()]):
        assert grad.isfinite().all() and grad.abs().sum() > 0


def test_carried_density_integrates_to_one() -> None:
    prior = dist.Uniform(torch.tensor([-1.0]).double(), torch.tensor([2.0]).double())
    posterior = moved(prior)[1]
    grid = torch.linspace(-1, 2, 20_001).double()[1:-1].unsqueeze(-1)
    mass = posterior.log_prob(grid).exp().sum() * 3 / 20_000
    assert mass.item() == pytest.approx(1.0, abs=1e-3)


@pytest.mark.parametrize(
    "prior",
    [
        dist.Bernoulli(p(3) - 0.5),
        dist.Categorical(logits=r(3)),
        dist.Poisson(p(3)),
        dist.VonMises(r(3), p(3)),
        dist.Delta(r(3)),
        dist.Delta(r(3)).to_event(1),
        dist.LKJCholesky(3, p(1)),
        getattr(torch.distributions, "GeneralizedPareto", lambda *_: dist.Delta(r(3)))(
            r(3), p(3), p(3)
        ),
    ],
)
def test_families_without_a_gradient_are_refused_by_name(prior: Any) -> None:  # noqa: ANN401
    core = getattr(prior, "base_dist", prior) if isinstance(prior, dist.Independent) else prior
    with pytest.raises(ValueError, match=f"reparametrised.*got {type(core).__name__}"):
        free_parameters(prior)


def test_which_parameters_are_locations_and_which_are_free() -> None:
    normal, gamma = dist.Normal(r(3, 2), p(3, 2)).to_event(1), dist.Gamma(p(3), p(3))
    dirichlet, uniform = dist.Dirichlet(p(3, 2)), dist.Uniform(-p(3), p(3))
    locations = {
        (d, n) for d in (normal, gamma, dirichlet) for n in free_parameters(d) if is_location(d, n)
    }
    assert locations == {
        (normal, "loc"),
        (gamma, "concentration"),
        (gamma, "rate"),
        (dirichlet, "concentration"),
    }
    assert is_location(uniform, "loc") and not is_location(uniform, "scale")
    assert is_unbounded(normal, "loc") and not is_unbounded(normal, "scale")
    assert is_unbounded(dist.MultivariateNormal(r(3, 2), scale_tril=tril(3)), "loc")
    assert not is_unbounded(gamma, "rate") and is_unbounded(uniform, "loc")


def test_prior_where_chooses_element_by_element() -> None:
    """Density, divergence and draws; the side that is not chosen has no gradient."""
    prior = dist.Normal(r(3, 2), p(3, 2)).to_event(1)
    leaves = {n: v.clone() for n, v in free_parameters(prior).items()}
    leaves["loc"] = torch.where(SEEN.unsqueeze(-1), leaves["loc"] + 1.0, 1e6)
    leaves["scale"] = leaves["scale"] - 0.3
    leaves = {n: v.requires_grad_() for n, v in leaves.items()}
    posterior = with_parameters(prior, leaves)
    mixed = prior_where(~SEEN, posterior, prior)
    assert prior_where(None, posterior, prior) is posterior
    assert isinstance(mixed, PriorWhere) and mixed.has_rsample
    z = mixed.rsample()
    assert z.isfinite().all()
    torch.testing.assert_close(mixed.log_prob(z)[SEEN], posterior.log_prob(z)[SEEN])
    torch.testing.assert_close(mixed.log_prob(z)[~SEEN], prior.log_prob(z)[~SEEN])
    nats = divergence(mixed, prior, z)
    assert nats[1] == 0
    torch.testing.assert_close(nats[SEEN], kl_divergence(posterior, prior)[SEEN])
    for value in (nats.sum(), (mixed.log_prob(z) - prior.log_prob(z)).sum()):
        for grad in torch.autograd.grad(value, [*leaves.values()], retain_graph=True):
            assert grad[SEEN].abs().sum() > 0 and (grad[~SEEN] == 0).all()
    wide = mixed.expand(Size([4, 3]))
    assert wide.batch_shape == (4, 3) and wide.log_prob(z).shape == (4, 3)
    assert mixed.expand(Size([3])) is mixed


def test_a_masked_prior_has_a_posterior_that_counts_nowhere_else() -> None:
    prior = FAMILIES["masked"]()
    posterior = moved(prior)[1]
    z = posterior.rsample()
    assert (posterior.log_prob(z)[~SEEN] == 0).all()
    assert (divergence(posterior, prior, z)[~SEEN] == 0).all()
    assert (divergence(posterior, prior, z)[SEEN] > 0).all()
