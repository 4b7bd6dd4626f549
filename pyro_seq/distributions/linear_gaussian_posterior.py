r"""The joint posterior of the states of a linear-Gaussian model, and KL divergences from it."""

from __future__ import annotations

from typing import Any

import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution, constraints
from torch import Tensor
from torch.distributions import register_kl

from pyro_seq.ops import kalman
from pyro_seq.ops.linalg import cholesky, no_autocast

__all__ = ["LinearGaussianPosterior"]


class LinearGaussianPosterior(TorchDistribution):
    r"""Joint distribution of all states of a linear-Gaussian model, :math:`p(z_{1:T} \mid a)`.

    One value is a whole trajectory `z (time, state)`. Built by the methods `posterior` and
    `latent_prior` of :class:`~pyro_seq.distributions.LinearGaussianSSM`.

    Args:
        posterior: The algebra, in float64.
        dtype: Floating point type of what is returned.
        time: Number of steps.
        state: Number of coordinates of the state.
    """

    arg_constraints: dict[str, Any] = {}
    support = constraints.independent(constraints.real, 2)
    has_rsample = True

    def __init__(
        self, posterior: kalman.Posterior, dtype: torch.dtype, time: int, state: int
    ) -> None:
        self._posterior, self._dtype = posterior, dtype
        batch = posterior.noise_shape[:-2]
        super().__init__(batch, torch.Size((time, state)), validate_args=False)

    def expand(self, batch_shape: torch.Size, _instance: Any = None) -> TorchDistribution:  # noqa: ANN401
        """The same distribution with other batch dimensions."""
        if torch.Size(batch_shape) == self.batch_shape:
            return self
        return dist.ExpandedDistribution(self, batch_shape)

    @property
    def log_evidence(self) -> Tensor:
        r""":math:`\log p(a)` in nats, `(*batch)`."""
        with no_autocast(self._posterior.device):
            return self._posterior.log_evidence().to(self._dtype)

    @property
    def mean(self) -> Tensor:
        r""":math:`E[z \mid a]`, `(*batch, time, state)`."""
        with no_autocast(self._posterior.device):
            return self._posterior.mean().to(self._dtype)

    @property
    def smoothed(self) -> kalman.Smoothed:
        r"""Means, covariances and lag-one cross-covariances of the states."""
        with no_autocast(self._posterior.device):
            return kalman.Smoothed(*(t.to(self._dtype) for t in self._posterior.smoothed()))

    @property
    def covariance(self) -> Tensor:
        r""":math:`\mathrm{Cov}(z_t \mid a)`, `(*batch, time, state, state)`."""
        return self.smoothed.cov

    @property
    def cross_covariance(self) -> Tensor:
        r""":math:`\mathrm{Cov}(z_{t+1}, z_t \mid a)`, `(*batch, time - 1, state, state)`."""
        return self.smoothed.cross_cov

    @property
    def variance(self) -> Tensor:
        r"""Diagonal of :attr:`covariance`, `(*batch, time, state)`."""
        return self.covariance.diagonal(dim1=-2, dim2=-1)

    def rsample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:  # noqa: B008
        """Joint samples `(*sample, *batch, time, state)`, reparametrised."""
        shape = torch.Size(sample_shape) + self._posterior.noise_shape
        noise = torch.randn(shape, dtype=torch.float64, device=self._posterior.device)
        with no_autocast(self._posterior.device):
            return self._posterior.sample(noise).to(self._dtype)

    def log_prob(self, value: Tensor) -> Tensor:
        r""":math:`\log p(z \mid a)` in nats, `(*sample, *batch)`."""
        if value.shape[-2:] != self.event_shape:
            raise ValueError(
                f"value must end in (time, state) = {tuple(self.event_shape)}; "
                f"got shape {tuple(value.shape)}"
            )
        with no_autocast(self._posterior.device):
            return self._posterior.log_prob(value.to(torch.float64)).to(self._dtype)

    def marginals(self) -> dist.Independent:
        r"""The product of the marginals, :math:`\prod_t p(z_t \mid a)`.

        A looser stand-in for the joint: see the `marginal` estimator of
        :class:`pyro_seq.models.kvae.KVAE`.
        """
        with no_autocast(self._posterior.device):
            smoothed = self._posterior.smoothed()
            factor = cholesky(smoothed.cov, "smoothed covariance")
        return dist.MultivariateNormal(
            smoothed.loc.to(self._dtype), scale_tril=factor.to(self._dtype), validate_args=False
        ).to_event(1)

    def entropy(self) -> Tensor:
        r""":math:`-E[\log p(z \mid a)]` in nats, `(*batch)`."""
        with no_autocast(self._posterior.device):
            return -self._posterior.expected_log_prob(self._posterior.smoothed()).to(self._dtype)

    def expected_log_prob(self, moments: kalman.Smoothed) -> Tensor:
        r""":math:`E_q[\log p(z \mid a)]` in nats, `(*batch)`, for a Gaussian q of `moments`."""
        with no_autocast(self._posterior.device):
            exact = kalman.Smoothed(*(t.to(torch.float64) for t in moments))
            return self._posterior.expected_log_prob(exact).to(self._dtype)


@register_kl(LinearGaussianPosterior, LinearGaussianPosterior)
def _kl_joint_joint(q: LinearGaussianPosterior, p: LinearGaussianPosterior) -> Tensor:
    r""":math:`E_q[\log q - \log p]`, in float64 until the difference is taken."""
    with no_autocast(q._posterior.device):
        moments = q._posterior.smoothed()
        gain = q._posterior.expected_log_prob(moments) - p._posterior.expected_log_prob(moments)
    return gain.to(q._dtype)


@register_kl(dist.Independent, LinearGaussianPosterior)
def _kl_marginals_joint(q: dist.Independent, p: LinearGaussianPosterior) -> Tensor:
    r"""From a joint, a product over steps such as :meth:`LinearGaussianPosterior.marginals`."""
    base = q.base_dist
    if (
        not isinstance(base, torch.distributions.MultivariateNormal)
        or q.reinterpreted_batch_ndims != 1
    ):
        raise NotImplementedError(
            "KL is closed for MultivariateNormal(loc, cov).to_event(1) over (time, state)"
        )
    cov = base.covariance_matrix
    moments = kalman.Smoothed(base.loc, cov, torch.zeros_like(cov[..., 1:, :, :]))
    return -q.entropy() - p.expected_log_prob(moments)
