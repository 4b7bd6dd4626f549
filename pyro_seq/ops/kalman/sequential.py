r"""Kalman filter, Rauch-Tung-Striebel smoother and backward sampling in covariance form.

One Python step per frame, differentiated by autograd. It is the reference for the other algorithm,
the only one that filters, and the one to use step by step.

References:
    Kalman (1960); Rauch, Tung, Striebel (1965); Carter, Kohn (1994), backward sampling.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from pyro_seq.ops.kalman.model import Filtered, LinearGaussian, Smoothed
from pyro_seq.ops.linalg import cholesky, matvec, symmetrise

__all__ = ["SequentialPosterior", "Updated", "kalman_filter", "predict", "restrict", "update"]


class Updated(NamedTuple):
    r"""State after an update: `loc (*batch, state)`, `cov`, and the nats of what was observed."""

    loc: Tensor
    cov: Tensor
    log_likelihood: Tensor


def predict(
    loc: Tensor, cov: Tensor, transition: Tensor, offset: Tensor, transition_cov: Tensor
) -> tuple[Tensor, Tensor]:
    r"""One step ahead: :math:`m' = A m + b,\; P' = A P A^\top + Q`.

    Args:
        loc: `(*batch, state)`.
        cov: `(*batch, state, state)`.
        transition: A, `(*batch, state, state)`.
        offset: b, `(*batch, state)`.
        transition_cov: Q, `(*batch, state, state)`.

    Returns:
        Predicted mean and covariance.
    """
    cov = transition @ cov @ transition.mT + transition_cov
    return matvec(transition, loc) + offset, symmetrise(cov)


def update(
    loc: Tensor,
    cov: Tensor,
    emission: Tensor,
    emission_cov: Tensor,
    value: Tensor,
    observed: Tensor | None = None,
    *,
    name: str = "innovation covariance",
) -> Updated:
    r"""Condition on one observation :math:`a = C z + N(0, R)`, in Joseph form.

    .. math::
        S = C P C^\top + R,\; K = P C^\top S^{-1},\; m' = m + K (a - C m),\;
        P' = (I - K C) P (I - K C)^\top + K R K^\top

    Args:
        loc: m, `(*batch, state)`.
        cov: P, `(*batch, state, state)`.
        emission: C, `(*batch, obs, state)`.
        emission_cov: R, `(*batch, obs, obs)`.
        value: a, `(*batch, obs)`; what is not observed may be NaN.
        observed: Coordinates that are there, bool `(*batch, obs)`; None means all.
        name: How the innovation covariance is called in errors.

    Returns:
        The updated moments and :math:`\log N(a; C m, S)` of the observed coordinates.
    """
    count: Tensor | int = value.shape[-1]
    if observed is not None:
        value, emission, emission_cov = restrict(value, emission, emission_cov, observed)
        count = observed.sum(-1).to(value.dtype)
    cross = cov @ emission.mT
    factor = cholesky(emission @ cross + emission_cov, name, per_step=False)
    gain = torch.cholesky_solve(cross.mT, factor).mT
    residual = value - matvec(emission, loc)
    white = torch.linalg.solve_triangular(factor, residual.unsqueeze(-1), upper=False).squeeze(-1)
    log_det = factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)
    log_likelihood = -0.5 * white.square().sum(-1) - log_det - 0.5 * math.log(2 * math.pi) * count
    keep = torch.eye(cov.shape[-1], dtype=cov.dtype, device=cov.device) - gain @ emission
    cov = keep @ cov @ keep.mT + gain @ emission_cov @ gain.mT
    return Updated(loc + matvec(gain, residual), symmetrise(cov), log_likelihood)


def restrict(
    value: Tensor, emission: Tensor, emission_cov: Tensor, observed: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    r"""The same observation with its missing coordinates turned into nothing.

    A missing coordinate becomes an exact zero, emitted by a zero row of C with unit variance and
    no correlation: it informs on nothing and its log density is that of :math:`N(0; 0, 1)` without
    the constant, that is zero.
    """
    value = torch.where(observed, value, 0.0)
    emission = torch.where(observed.unsqueeze(-1), emission, 0.0)
    both = observed.unsqueeze(-1) & observed.unsqueeze(-2)
    eye = torch.eye(emission_cov.shape[-1], dtype=emission_cov.dtype, device=emission_cov.device)
    return value, emission, torch.where(both, emission_cov, eye)


def kalman_filter(
    model: LinearGaussian, value: Tensor, observed: Tensor | None = None
) -> Filtered:
    r"""Filtered and predicted marginals of every step.

    Args:
        model: The state space model.
        value: a, `(*batch, time, obs)`.
        observed: bool `(*batch, time, obs)`, or None when everything is.

    Returns:
        The marginals and the log likelihood of each step.
    """
    batch = value.shape[:-2]
    state = model.initial_loc.shape[-1]
    loc = model.initial_loc.expand(*batch, state)
    cov = symmetrise(model.initial_cov).expand(*batch, state, state)
    rows = []
    for step in range(value.shape[-2]):
        now = model.at(step)
        if step > 0:
            loc, cov = predict(loc, cov, now.transition, now.offset, now.transition_cov)
        seen = None if observed is None else observed[..., step, :]
        done = update(
            loc,
            cov,
            now.emission,
            now.emission_cov,
            value[..., step, :],
            seen,
            name=f"innovation covariance of step {step}",
        )
        rows.append((done.loc, done.cov, loc, cov, done.log_likelihood))
        loc, cov = done.loc, done.cov
    dims = (-2, -3, -2, -3, -1)
    return Filtered(
        *(
            torch.stack(column, dim)
            for column, dim in zip(zip(*rows, strict=True), dims, strict=True)
        )
    )


class SequentialPosterior:
    r"""Joint posterior as the reverse-time Markov chain that the filter leaves behind.

    .. math::
        z_T \mid a \sim N(m_T, P_T), \qquad
        z_t \mid z_{t+1}, a \sim N(m_t + G_t (z_{t+1} - m_{t+1|t}),\; V_t)

    with :math:`G_t = P_t A_{t+1}^\top P_{t+1|t}^{-1}` and
    :math:`V_t = (I - G_t A_{t+1}) P_t (I - G_t A_{t+1})^\top + G_t Q_{t+1} G_t^\top`.

    Args:
        model: The state space model.
        value: a, `(*batch, time, obs)`.
        observed: bool `(*batch, time, obs)`, or None when everything is.
    """

    def __init__(
        self, model: LinearGaussian, value: Tensor, observed: Tensor | None = None
    ) -> None:
        self.filtered = filtered = kalman_filter(model, value, observed)
        transition = (
            model.transition[..., 1:, :, :] if model.transition.shape[-3] > 1 else model.transition
        )
        noise = (
            model.transition_cov[..., 1:, :, :]
            if model.transition_cov.shape[-3] > 1
            else model.transition_cov
        )
        cov, ahead = filtered.cov[..., :-1, :, :], filtered.predicted_cov[..., 1:, :, :]
        factor = cholesky(ahead, "predicted covariance")
        self.gain = torch.cholesky_solve(transition @ cov, factor).mT
        keep = (
            torch.eye(cov.shape[-1], dtype=cov.dtype, device=cov.device) - self.gain @ transition
        )
        self.kernel_cov = symmetrise(keep @ cov @ keep.mT + self.gain @ noise @ self.gain.mT)

    @property
    def device(self) -> torch.device:
        """Where the tensors live."""
        return self.gain.device

    @property
    def noise_shape(self) -> torch.Size:
        """`(*batch, time, state)`."""
        return self.filtered.loc.shape

    def log_evidence(self) -> Tensor:
        r""":math:`\log p(a) = \sum_t \log p(a_t \mid a_{1:t-1})`."""
        return self.filtered.log_likelihood.sum(-1)

    def mean(self) -> Tensor:
        r""":math:`E[z \mid a]`."""
        return self._run_back(self.filtered.loc[..., -1, :], torch.zeros_like(self.filtered.loc))

    def smoothed(self) -> Smoothed:
        """Rauch-Tung-Striebel recursion for the covariances."""
        cov = self.filtered.cov[..., -1, :, :]
        covs, crosses = [cov], []
        for step in reversed(range(self.gain.shape[-3])):
            gain = self.gain[..., step, :, :]
            crosses.append(cov @ gain.mT)
            cov = symmetrise(gain @ crosses[-1] + self.kernel_cov[..., step, :, :])
            covs.append(cov)
        shape = self.gain.shape
        cross_cov = torch.stack(crosses[::-1], -3) if crosses else self.gain.new_zeros(shape)
        return Smoothed(self.mean(), torch.stack(covs[::-1], -3), cross_cov)

    def sample(self, noise: Tensor) -> Tensor:
        """Backward sampling: the last state from the filter, then each state given the next."""
        shocks = matvec(self._kernel_factor(), noise)
        return self._run_back(self.filtered.loc[..., -1, :] + shocks[..., -1, :], shocks)

    def log_prob(self, latent: Tensor) -> Tensor:
        """Sum of the log densities of the last state and of every backward kernel."""
        factor, residual = self._kernel_factor(), self._residual(latent)
        white = torch.linalg.solve_triangular(factor, residual.unsqueeze(-1), upper=False)
        return self._log_normaliser(factor) - 0.5 * white.square().sum((-1, -2, -3))

    def expected_log_prob(self, moments: Smoothed) -> Tensor:
        r"""As :meth:`log_prob`, with the second moments of every kernel's residual under q."""
        factor, residual = self._kernel_factor(), self._residual(moments.loc)
        crossed = self.gain @ moments.cross_cov
        ahead = self.gain @ moments.cov[..., 1:, :, :] @ self.gain.mT
        spread = moments.cov[..., :-1, :, :] - crossed - crossed.mT + ahead
        spread = torch.cat([spread, moments.cov[..., -1:, :, :]], -3)
        second = spread + residual.unsqueeze(-1) * residual.unsqueeze(-2)
        trace = torch.cholesky_solve(second, factor).diagonal(dim1=-2, dim2=-1)
        return self._log_normaliser(factor) - 0.5 * trace.sum((-1, -2))

    def _kernel_factor(self) -> Tensor:
        """Cholesky factors of the kernels' covariances, the last state's behind them."""
        last = cholesky(self.filtered.cov[..., -1:, :, :], "filtered covariance of the last step")
        return torch.cat([cholesky(self.kernel_cov, "backward kernel covariance"), last], -3)

    def _residual(self, latent: Tensor) -> Tensor:
        """What each kernel's mean leaves of a trajectory, `(*, time, state)`."""
        ahead = latent[..., 1:, :] - self.filtered.predicted_loc[..., 1:, :]
        here = latent - self.filtered.loc
        return torch.cat([here[..., :-1, :] - matvec(self.gain, ahead), here[..., -1:, :]], -2)

    @staticmethod
    def _log_normaliser(factor: Tensor) -> Tensor:
        size = factor.shape[-1] * factor.shape[-3]
        return -factor.diagonal(dim1=-2, dim2=-1).log().sum((-1, -2)) - 0.5 * size * math.log(
            2 * math.pi
        )

    def _run_back(self, last: Tensor, shocks: Tensor) -> Tensor:
        """Run the backward chain from the last state with a shock added at every earlier step."""
        states = [last]
        for step in reversed(range(self.gain.shape[-3])):
            ahead = states[-1] - self.filtered.predicted_loc[..., step + 1, :]
            mean = self.filtered.loc[..., step, :] + matvec(self.gain[..., step, :, :], ahead)
            states.append(mean + shocks[..., step, :])
        return torch.stack(states[::-1], -2)
