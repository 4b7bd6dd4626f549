r"""The joint posterior of all states at once, from its block-tridiagonal precision.

Written as a whitened least-squares problem, the model is :math:`-2\log p(a, z) = |J z - w|^2 + const`
with one block row for the first state, one per transition and one per observation. Then

.. math::
    \Lambda = J^\top J, \quad \mu = \Lambda^{-1} J^\top w, \quad
    \log p(a) = \log p(a, z) - \log p(z \mid a) \text{ at } z = \mu,

and :math:`\Lambda^{-1} J^\top (w + \epsilon)` with :math:`\epsilon \sim N(0, I)` is an exact joint
sample: sampling is solving with a perturbed right-hand side. There is no Python loop over time
(:mod:`pyro_seq.ops.block_tridiagonal`), and the backward pass is analytic: by Fisher's identity the
gradient of :math:`\log p(a)` needs the smoothed moments only, that of a sample one more solve.
Second derivatives are not offered and raise.

References:
    Papandreou, Yuille (2010), sampling by perturbation; Paninski et al. (2010), state space models
    as block-tridiagonal systems.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.linalg import solve_triangular

from pyro_seq.ops.block_tridiagonal import factorise, log_det, selected_inverse, solve
from pyro_seq.ops.kalman.model import LinearGaussian, Smoothed
from pyro_seq.ops.kalman.sequential import restrict
from pyro_seq.ops.linalg import cholesky, matvec

__all__ = ["InformationPosterior"]


class InformationPosterior:
    r"""Joint posterior :math:`N(\Lambda^{-1} J^\top w, \Lambda^{-1})`.

    Args:
        model: The state space model.
        value: a, `(*batch, time, obs)`.
        observed: bool `(*batch, time, obs)`, or None when everything is.
    """

    def __init__(
        self, model: LinearGaussian, value: Tensor, observed: Tensor | None = None
    ) -> None:
        self._batch, self._time = value.shape[:-2], value.shape[-2]
        self._count: Tensor | int = value.shape[-1] * value.shape[-2]
        emission, emission_cov = model.emission, model.emission_cov
        if observed is not None:
            value, emission, emission_cov = restrict(value, emission, emission_cov, observed)
            self._count = observed.sum((-1, -2)).to(value.dtype)
        self._whiten(model, value, emission, emission_cov)
        diagonal, lower = self._normal_matrix()
        state = diagonal.shape[-1]
        self._diagonal = diagonal.expand(*self._batch, self._time, state, state)
        self._lower = lower.expand(*self._batch, self._time - 1, state, state)
        with torch.no_grad():
            self._factor = factorise(self._diagonal, self._lower)

    def _whiten(
        self, model: LinearGaussian, value: Tensor, emission: Tensor, emission_cov: Tensor
    ) -> None:
        """The block rows of J and the entries of w."""
        transition, offset, noise = (
            t[..., 1:, :, :] if t.shape[-3] > 1 else t
            for t in (model.transition, model.offset.unsqueeze(-1), model.transition_cov)
        )
        eye = torch.eye(transition.shape[-1], dtype=value.dtype, device=value.device)
        chol_initial = cholesky(model.initial_cov, "initial_cov", per_step=False)
        chol_noise = cholesky(noise, "transition_cov")
        chol_emission = cholesky(emission_cov, "emission_cov")
        self._first = solve_triangular(chol_initial, eye.expand_as(chol_initial), upper=False)
        self._to = solve_triangular(chol_noise, eye.expand_as(chol_noise), upper=False)
        self._from = self._to @ transition
        self._emit = solve_triangular(chol_emission, emission, upper=False)
        self._w_first = matvec(self._first, model.initial_loc)
        self._w_step = (self._to @ offset).squeeze(-1)
        self._w_emit = solve_triangular(chol_emission, value.unsqueeze(-1), upper=False).squeeze(
            -1
        )
        steps = self._time - 1
        self._log_det_noise = (
            _log_diagonal(chol_initial)
            + _total(_log_diagonal(chol_noise), steps)
            + _total(_log_diagonal(chol_emission), self._time)
        )

    def _normal_matrix(self) -> tuple[Tensor, Tensor]:
        r"""The blocks of :math:`\Lambda = J^\top J`: `(*batch, time, n, n)` and `(*batch, time - 1, n, n)`."""
        first = self._first.mT @ self._first
        steps = self._time - 1
        arriving, leaving = self._to.mT @ self._to, self._from.mT @ self._from
        seen = self._emit.mT @ self._emit
        shape = (
            torch.broadcast_shapes(
                first.shape[:-2], arriving.shape[:-3], leaving.shape[:-3], seen.shape[:-3]
            )
            + first.shape[-2:]
        )
        arriving = _stretch(arriving, shape, steps)
        leaving = _stretch(leaving, shape, steps)
        first = first.expand(shape).unsqueeze(-3)
        diagonal = (
            seen
            + torch.cat([first, arriving], -3)
            + torch.cat([leaving, torch.zeros_like(first)], -3)
        )
        lower = _stretch(-self._to.mT @ self._from, shape, steps)
        return diagonal, lower

    def _transpose_times(self, first: Tensor, step: Tensor, emit: Tensor) -> Tensor:
        r""":math:`J^\top r` for a residual given by parts, `(*, time, state)`."""
        arriving = _times(self._to.mT, step)
        leaving = _times(self._from.mT, step)
        start = matvec(self._first.mT, first).unsqueeze(-2)
        seen = _times(self._emit.mT, emit)
        steps = self._time - 1
        shape = torch.broadcast_shapes(seen.shape[:-2], start.shape[:-2], arriving.shape[:-2])
        n = start.shape[-1]
        start, arriving, leaving = (
            t.expand(*shape, k, n) for t, k in ((start, 1), (arriving, steps), (leaving, steps))
        )
        return (
            seen
            + torch.cat([start, arriving], -2)
            - torch.cat([leaving, torch.zeros_like(start)], -2)
        )

    def _residual(self, latent: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        r""":math:`J z` by parts."""
        first = matvec(self._first, latent[..., 0, :])
        step = _times(self._to, latent[..., 1:, :]) - _times(self._from, latent[..., :-1, :])
        return first, step, _times(self._emit, latent)

    def _solve(self, rhs: Tensor) -> Tensor:
        r""":math:`\Lambda^{-1} h` for `rhs (*sample, *batch, time, state)`; samples become columns."""
        extra = rhs.dim() - self._diagonal.dim() + 1
        columns = rhs.flatten(0, extra - 1).movedim(0, -1) if extra > 0 else rhs.unsqueeze(-1)
        columns = columns.expand(*self._batch, *columns.shape[-3:])
        solution = solve(self._diagonal, self._lower, columns, self._factor)
        if extra <= 0:
            return solution.squeeze(-1)
        return solution.movedim(-1, 0).unflatten(0, rhs.shape[:extra])

    def _log_det(self) -> Tensor:
        return log_det(self._diagonal, self._lower, self._factor)

    @property
    def device(self) -> torch.device:
        """Where the tensors live."""
        return self._diagonal.device

    @property
    def noise_shape(self) -> torch.Size:
        """`(*batch, time, state + obs)`: one number per row of J."""
        size = self._emit.shape[-2] + self._emit.shape[-1]
        return torch.Size((*self._batch, self._time, size))

    def mean(self) -> Tensor:
        r""":math:`\mu = \Lambda^{-1} J^\top w`."""
        return self._solve(self._transpose_times(self._w_first, self._w_step, self._w_emit))

    def log_evidence(self) -> Tensor:
        r""":math:`\log p(a, \mu) - \log p(\mu \mid a)`.

        The gradient through :math:`\mu` vanishes, since :math:`\mu` is the mode of both.
        """
        with torch.no_grad():
            mode = self.mean()
        first, step, emit = self._residual(mode)
        square = (
            (first - self._w_first).square().sum(-1)
            + (step - self._w_step).square().sum((-1, -2))
            + (emit - self._w_emit).square().sum((-1, -2))
        )
        normaliser = 0.5 * math.log(2 * math.pi) * self._count
        return -0.5 * square - self._log_det_noise - 0.5 * self._log_det() - normaliser

    def smoothed(self) -> Smoothed:
        """Marginals from the selected inverse, differentiated by autograd."""
        factor = (
            factorise(self._diagonal, self._lower)
            if self._diagonal.requires_grad
            else self._factor
        )
        return Smoothed(self.mean(), *selected_inverse(factor))

    def sample(self, noise: Tensor) -> Tensor:
        r""":math:`\Lambda^{-1} J^\top (w + \epsilon)`."""
        state = self._emit.shape[-1]
        first = self._w_first + noise[..., 0, :state]
        step = self._w_step + noise[..., 1:, :state]
        emit = self._w_emit + noise[..., state:]
        return self._solve(self._transpose_times(first, step, emit))

    def log_prob(self, latent: Tensor) -> Tensor:
        r""":math:`\tfrac12 \log\det\Lambda - \tfrac12 |J (z - \mu)|^2 - \tfrac{n T}{2} \log 2\pi`."""
        first, step, emit = self._residual(latent - self.mean())
        square = first.square().sum(-1) + step.square().sum((-1, -2)) + emit.square().sum((-1, -2))
        size = latent.shape[-1] * latent.shape[-2]
        return 0.5 * (self._log_det() - square - size * math.log(2 * math.pi))

    def expected_log_prob(self, moments: Smoothed) -> Tensor:
        r"""As :meth:`log_prob`, plus :math:`-\tfrac12 \mathrm{tr}(\Lambda\, \mathrm{Cov}_q)`, which meets three diagonals only."""
        own = (self._diagonal * moments.cov).sum((-1, -2, -3))
        cross = (self._lower * moments.cross_cov).sum((-1, -2, -3))
        return self.log_prob(moments.loc) - 0.5 * own - cross


def _times(matrix: Tensor, vectors: Tensor) -> Tensor:
    """`(*, time | 1, n, m)` times `(*, time, m)`."""
    return matvec(matrix, vectors)


def _log_diagonal(chol: Tensor) -> Tensor:
    return chol.diagonal(dim1=-2, dim2=-1).log().sum(-1)


def _total(per_step: Tensor, steps: int) -> Tensor:
    """Sum over time of `(*, steps | 1)`."""
    return per_step.sum(-1) if per_step.shape[-1] == steps else per_step.squeeze(-1) * steps


def _stretch(blocks: Tensor, shape: torch.Size, steps: int) -> Tensor:
    """Blocks `(*, steps | 1, n, n)` expanded to `(*batch, steps, n, n)`."""
    return blocks.expand(*shape[:-2], steps, *shape[-2:])
