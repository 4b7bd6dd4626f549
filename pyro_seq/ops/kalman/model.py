r"""The linear-Gaussian state space model as a tuple of tensors, and what algorithms return."""

from __future__ import annotations

from typing import NamedTuple, Protocol

import torch
from torch import Tensor

__all__ = ["Filtered", "LinearGaussian", "Posterior", "Smoothed"]


class LinearGaussian(NamedTuple):
    r"""A linear-Gaussian state space model.

    .. math::
        z_1 &\sim N(m_1, P_1) \\
        z_t &\sim N(A_t z_{t-1} + b_t, Q_t), \quad t = 2 \dots T \\
        a_t &\sim N(C_t z_t, R_t), \quad t = 1 \dots T

    The offset is :math:`b_t = B_t u_t` for controls :math:`u_t`. The time dimension of each matrix
    is `time`, or 1 where the matrix is constant; batch dimensions broadcast. Index 0 of
    a `transition`, `offset` or `transition_cov` that varies with time is not used.

    Shapes: `initial_loc (*batch, state)`, `initial_cov (*batch, state, state)`,
    `transition (*batch, time, state, state)`, `offset (*batch, time, state)`,
    `transition_cov (*batch, time, state, state)`, `emission (*batch, time, obs, state)`,
    `emission_cov (*batch, time, obs, obs)`.
    """

    initial_loc: Tensor
    initial_cov: Tensor
    transition: Tensor
    offset: Tensor
    transition_cov: Tensor
    emission: Tensor
    emission_cov: Tensor

    def to(self, dtype: torch.dtype) -> LinearGaussian:
        """Every tensor in another floating point type."""
        return LinearGaussian(*(tensor.to(dtype) for tensor in self))

    def at(self, step: int) -> LinearGaussian:
        """The tensors of one step, without their time dimension."""
        pick = [
            t[..., min(step, t.shape[d] - 1), :, :]
            if d == -3
            else t[..., min(step, t.shape[d] - 1), :]
            for t, d in zip(self[2:], (-3, -2, -3, -3, -3), strict=True)
        ]
        return LinearGaussian(self.initial_loc, self.initial_cov, *pick)


class Filtered(NamedTuple):
    r"""Marginals of the state given the past.

    Attributes:
        loc: Mean of :math:`p(z_t \mid a_{1:t})`, `(*batch, time, state)`.
        cov: Its covariance, `(*batch, time, state, state)`.
        predicted_loc: Mean of :math:`p(z_t \mid a_{1:t-1})`, `(*batch, time, state)`.
        predicted_cov: Its covariance, `(*batch, time, state, state)`.
        log_likelihood: :math:`\log p(a_t \mid a_{1:t-1})` in nats, zero where nothing is observed,
            `(*batch, time)`.
    """

    loc: Tensor
    cov: Tensor
    predicted_loc: Tensor
    predicted_cov: Tensor
    log_likelihood: Tensor


class Smoothed(NamedTuple):
    r"""Marginals of the state given all observations.

    Attributes:
        loc: :math:`E[z_t \mid a]`, `(*batch, time, state)`.
        cov: :math:`\mathrm{Cov}(z_t \mid a)`, `(*batch, time, state, state)`.
        cross_cov: :math:`\mathrm{Cov}(z_{t+1}, z_t \mid a)`, `(*batch, time - 1, state, state)`.
    """

    loc: Tensor
    cov: Tensor
    cross_cov: Tensor


class Posterior(Protocol):
    r"""The joint posterior :math:`p(z_{1:T} \mid a)`: what each algorithm offers."""

    @property
    def device(self) -> torch.device:
        """Where the tensors live."""
        ...

    @property
    def noise_shape(self) -> torch.Size:
        """Shape of the standard normal noise that one sample needs: `(*batch, time, noise)`."""
        ...

    def log_evidence(self) -> Tensor:
        r""":math:`\log p(a)` of the observed coordinates in nats, `(*batch)`."""
        ...

    def mean(self) -> Tensor:
        r""":math:`E[z \mid a]`, `(*batch, time, state)`."""
        ...

    def smoothed(self) -> Smoothed:
        """Marginals with their lag-one cross-covariances."""
        ...

    def sample(self, noise: Tensor) -> Tensor:
        """Samples `(*sample, *batch, time, state)`, affine in `noise (*sample, *noise_shape)`."""
        ...

    def log_prob(self, latent: Tensor) -> Tensor:
        r""":math:`\log p(z \mid a)` in nats for `latent (*sample, *batch, time, state)`."""
        ...

    def expected_log_prob(self, moments: Smoothed) -> Tensor:
        r""":math:`E_q[\log p(z \mid a)]` in nats, `(*batch)`, for a Gaussian q of `moments`."""
        ...
