r"""The joint posterior of all states at once, from its block-tridiagonal precision.

With the least-squares problem of :mod:`pyro_seq.ops.kalman.least_squares`, its matrix
:math:`\Lambda` and its minimiser :math:`\mu`,

.. math::
    p(z \mid a) = N(\mu, \Lambda^{-1}), \quad
    \log p(a) = \log p(a, z) - \log p(z \mid a) \text{ at } z = \mu,

and the minimiser of the problem in which every :math:`m_1, b_t, a_t` was perturbed by noise of its
own covariance is an exact joint sample. There is no Python loop over time
(:mod:`pyro_seq.ops.block_tridiagonal`), and the backward pass is analytic: the gradient of
:math:`\log p(a)` needs the smoothed moments only, that of a sample one more solve. Second
derivatives are not offered and raise.

References:
    Papandreou, Yuille (2010), sampling by perturbation; Paninski et al. (2010), state space models
    as block-tridiagonal systems.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from pyro_seq.ops.block_tridiagonal import factorise, selected_inverse, selected_inverse_derivative
from pyro_seq.ops.kalman.least_squares import (
    HALF_LOG_TWO_PI,
    LeastSquares,
    evidence,
    minimiser,
    normal_matrix,
)
from pyro_seq.ops.kalman.model import LinearGaussian, Smoothed
from pyro_seq.ops.kalman.sequential import restrict
from pyro_seq.ops.linalg import cholesky
from pyro_seq.ops.small_matrices import matrices_first, matrices_last, product, transpose

__all__ = ["InformationPosterior"]

_NO_SAMPLE = torch.Size()


class InformationPosterior:
    r"""Joint posterior :math:`N(\mu, \Lambda^{-1})`.

    Args:
        model: The state space model.
        value: a, `(*batch, time, obs)`.
        observed: bool `(*batch, time, obs)`, or None when everything is.
    """

    def __init__(
        self, model: LinearGaussian, value: Tensor, observed: Tensor | None = None
    ) -> None:
        self._batch, self._time = value.shape[:-2], value.shape[-2]
        count: Tensor | int = value.shape[-1] * value.shape[-2]
        if observed is not None:
            value, emission, emission_cov = restrict(
                value, model.emission, model.emission_cov, observed
            )
            model = model._replace(emission=emission, emission_cov=emission_cov)
            count = observed.sum((-1, -2)).to(value.dtype)
        first_step = int(model.transition_cov.shape[-3] > 1)
        model = _without_first_step(model)
        self._factors = (
            cholesky(model.initial_cov, "initial_cov", per_step=False).unsqueeze(-3),
            cholesky(model.transition_cov, "transition_cov", first_step=first_step),
            cholesky(model.emission_cov, "emission_cov"),
        )
        self._problem = LeastSquares(
            self._vectors(model.initial_loc.unsqueeze(-2)),
            self._vectors(model.offset),
            self._vectors(value),
            self._matrices(model.transition),
            self._matrices(model.emission),
            *(self._matrices(torch.cholesky_inverse(factor)) for factor in self._factors),
        )
        lengths = (1, self._time - 1, self._time)
        log_dets = map(_log_det_over_time, self._factors, lengths)
        self._constant = sum(log_dets) + HALF_LOG_TWO_PI * count
        with torch.no_grad():
            self._factor = factorise(*normal_matrix(self._problem))

    @property
    def device(self) -> torch.device:
        """Where the tensors live."""
        return self._problem.value.device

    @property
    def noise_shape(self) -> torch.Size:
        """`(*batch, time, state + obs)`: one number per residual."""
        return torch.Size((*self._batch, self._time, sum(self._problem.emission.shape[:2])))

    def mean(self) -> Tensor:
        r""":math:`\mu`."""
        return self._from_vectors(minimiser(self._problem, self._factor))

    def log_evidence(self) -> Tensor:
        r""":math:`\log p(a, \mu) - \log p(\mu \mid a)`."""
        return (evidence(self._problem, self._factor) - self._constant).expand(self._batch)

    def smoothed(self) -> Smoothed:
        """Marginals from the selected inverse."""
        diagonal, lower = normal_matrix(self._problem)
        blocks = _SelectedInverse.apply(diagonal, lower, self._factor)
        return Smoothed(self.mean(), *map(self._from_matrices, blocks))

    def sample(self, noise: Tensor) -> Tensor:
        r"""The minimiser of the perturbed problem."""
        problem, state = self._problem, self._problem.emission.shape[1]
        first, step, seen = map(self._matrices, self._factors)
        shock = self._vectors(noise)
        perturbed = problem._replace(
            initial_loc=problem.initial_loc + product(first, shock[:state, :, :1]),
            offset=problem.offset + product(step, shock[:state, :, 1:]),
            value=problem.value + product(seen, shock[state:]),
        )
        return self._from_vectors(minimiser(perturbed, self._factor), self._sample_shape(noise))

    def log_prob(self, latent: Tensor) -> Tensor:
        r""":math:`\log p(a, z) - \log p(a)`."""
        size = latent.shape[-1] * latent.shape[-2]
        core = evidence(self._problem, self._factor)
        square = self._problem.square(self._vectors(latent))
        square = square.reshape(self._sample_shape(latent) + square.shape[1:])
        return -0.5 * square - core - HALF_LOG_TWO_PI * size

    def expected_log_prob(self, moments: Smoothed) -> Tensor:
        r"""As :meth:`log_prob`, less :math:`\tfrac12 \mathrm{tr}(\Lambda\, \mathrm{Cov}_q)`.

        The trace meets three diagonals of the covariance only.
        """
        diagonal, lower = map(self._from_matrices, normal_matrix(self._problem))
        own = (diagonal * moments.cov).sum((-1, -2, -3))
        cross = (lower * moments.cross_cov).sum((-1, -2, -3))
        return self.log_prob(moments.loc) - 0.5 * own - cross

    def _sample_shape(self, tensor: Tensor) -> torch.Size:
        """The dimensions of `(*sample, *batch, time, n)` before the batch."""
        return torch.Size(tensor.shape[: max(tensor.dim() - len(self._batch) - 2, 0)])

    def _matrices(self, matrix: Tensor) -> Tensor:
        """`(*batch, time, n, m)` as `(n, m, time, *batch)`."""
        return matrices_first(matrix, len(self._batch) + 1)

    def _vectors(self, vector: Tensor) -> Tensor:
        """`(*sample, *batch, time, n)` as `(n, sample, time, *batch)`."""
        sample = self._sample_shape(vector)
        columns = vector.reshape(sample.numel(), *vector.shape[len(sample) :]).movedim(0, -1)
        return self._matrices(columns)

    def _from_matrices(self, matrix: Tensor) -> Tensor:
        """`(n, m, time, *batch)` as `(*batch, time, n, m)`."""
        matrix = matrices_last(matrix)
        return matrix.expand(*self._batch, *matrix.shape[-3:])

    def _from_vectors(self, vector: Tensor, sample: torch.Size = _NO_SAMPLE) -> Tensor:
        """`(n, sample, time, *batch)` as `(*sample, *batch, time, n)`."""
        columns = self._from_matrices(vector).movedim(-1, 0)
        return columns.reshape(sample + columns.shape[1:])


class _SelectedInverse(torch.autograd.Function):
    r"""The tridiagonal blocks of :math:`\Lambda^{-1}`, once differentiable.

    They are the gradient of :math:`\log\det\Lambda`, whose Hessian is symmetric: the product with
    it that autograd wants is the derivative in the direction of the incoming gradient.
    """

    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> tuple[Tensor, Tensor]:  # noqa: ANN401
        diagonal, _, factor = arguments
        ctx.factor = factor
        return selected_inverse(factor, diagonal.shape[2])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, own: Tensor, cross: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401
        direction = (own + transpose(own)) / 2, cross / 2
        by_diagonal, by_lower = selected_inverse_derivative(ctx.factor, *direction)
        return by_diagonal, 2 * by_lower, None


def _without_first_step(model: LinearGaussian) -> LinearGaussian:
    """The transitions that are used: those of every step but the first."""
    transition, offset, noise = (
        t[..., 1:, :, :] if t.shape[-3] > 1 else t
        for t in (model.transition, model.offset.unsqueeze(-1), model.transition_cov)
    )
    return model._replace(transition=transition, offset=offset.squeeze(-1), transition_cov=noise)


def _log_det_over_time(factor: Tensor, steps: int) -> Tensor:
    """Half the log determinants of `(*, steps | 1, n, n)` summed over the steps."""
    per_step = factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)
    return per_step.sum(-1) * (steps / max(per_step.shape[-1], 1))
