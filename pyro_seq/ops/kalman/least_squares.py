r"""The linear-Gaussian model as a whitened least-squares problem, and what autograd needs of it.

:math:`-2 \log p(a, z) = |J z - w|^2 + const` with block rows

.. math::
    F z_1 - w^{(1)},\quad G_t z_t - H_t z_{t-1} - w^{(2)}_t,\quad K_t z_t - w^{(3)}_t

where :math:`F = L_{P_1}^{-1},\; G_t = L_{Q_t}^{-1},\; H_t = L_{Q_t}^{-1} A_t,\; K_t = L_{R_t}^{-1} C_t`.
With :math:`\Lambda = J^\top J` and :math:`\mu = \Lambda^{-1} J^\top w` the backward passes are

.. math::
    e = -\tfrac12 |w - J \mu|^2 - \tfrac12 \log\det\Lambda:\quad
    &\partial e / \partial J = \rho \mu^\top - J \Lambda^{-1},\; \partial e / \partial w = -\rho \\
    z = \Lambda^{-1} J^\top w:\quad
    &\partial / \partial J = \rho v^\top - (J v) z^\top,\; \partial / \partial w = J v,
    \quad v = \Lambda^{-1} \partial / \partial z

with the residual :math:`\rho = w - J \mu` (or :math:`w - J z`): one selected inverse, one solve.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from pyro_seq.ops.block_tridiagonal import Factor, log_det, selected_inverse, solve
from pyro_seq.ops.kalman.model import LinearGaussian
from pyro_seq.ops.linalg import cholesky, matvec

__all__ = ["Rows", "evidence", "minimiser", "normal_matrix", "whiten"]


class Rows(NamedTuple):
    """Block rows of J and entries of w.

    Shapes: `first (*, n, n)`, `to (*, time - 1 | 1, n, n)`, `back (*, time - 1 | 1, n, n)`,
    `emit (*, time | 1, obs, n)`, `w_first (*, n)`, `w_step (*, time - 1 | 1, n)`,
    `w_emit (*, time, obs)`.
    """

    first: Tensor
    to: Tensor
    back: Tensor
    emit: Tensor
    w_first: Tensor
    w_step: Tensor
    w_emit: Tensor

    def times(self, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """J z by parts, for `z (*sample, *batch, time, n)`."""
        step = matvec(self.to, z[..., 1:, :]) - matvec(self.back, z[..., :-1, :])
        return matvec(self.first, z[..., 0, :]), step, matvec(self.emit, z)

    def residual(self, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """w - J z by parts."""
        first, step, emit = self.times(z)
        return self.w_first - first, self.w_step - step, self.w_emit - emit

    def square(self, z: Tensor) -> Tensor:
        """Squared norm of the residual, `(*sample, *batch)`."""
        first, step, emit = self.residual(z)
        return first.square().sum(-1) + step.square().sum((-1, -2)) + emit.square().sum((-1, -2))

    def right_hand_side(self) -> Tensor:
        """The normal equations' right-hand side, `(*sample, *batch, time, n)`."""
        start = matvec(self.first.mT, self.w_first).unsqueeze(-2)
        arriving, leaving = matvec(self.to.mT, self.w_step), matvec(self.back.mT, self.w_step)
        seen = matvec(self.emit.mT, self.w_emit)
        shape, (time, n) = seen.shape[:-2], seen.shape[-2:]
        shape = torch.broadcast_shapes(
            shape, start.shape[:-2], arriving.shape[:-2], leaving.shape[:-2]
        )
        total = seen.expand(*shape, time, n).clone()
        total[..., :1, :] += start
        total[..., 1:, :] += arriving
        total[..., :-1, :] -= leaving
        return total


def whiten(model: LinearGaussian, value: Tensor) -> tuple[Rows, Tensor]:
    r"""Rows of the model, and half the log determinant of all its covariances.

    Args:
        model: The state space model, its missing coordinates already turned into nothing.
        value: a, `(*batch, time, obs)`.

    Returns:
        J and w, and :math:`\sum \log\det L` over the first state, transitions and observations.

    Raises:
        NotPositiveDefiniteError: Naming the covariance and the step.
    """
    transition, offset, noise = (
        t[..., 1:, :, :] if t.shape[-3] > 1 else t
        for t in (model.transition, model.offset.unsqueeze(-1), model.transition_cov)
    )
    initial = cholesky(model.initial_cov, "initial_cov", per_step=False)
    process = cholesky(noise, "transition_cov")
    measurement = cholesky(model.emission_cov, "emission_cov")
    first, to, white = (_inverse(chol) for chol in (initial, process, measurement))
    rows = Rows(
        first,
        to,
        to @ transition,
        white @ model.emission,
        matvec(first, model.initial_loc),
        (to @ offset).squeeze(-1),
        matvec(white, value),
    )
    time = value.shape[-2]
    log_dets = _log_diagonal(initial)
    log_dets = log_dets + _over_time(process, time - 1) + _over_time(measurement, time)
    return rows, log_dets


def normal_matrix(rows: Rows, batch: torch.Size) -> tuple[Tensor, Tensor]:
    r"""The blocks of :math:`\Lambda = J^\top J`: `(*batch, time, n, n)` and `(*batch, time - 1, n, n)`."""
    time, n = rows.w_emit.shape[-2], rows.first.shape[-1]
    diagonal = (rows.emit.mT @ rows.emit).expand(*batch, time, n, n).clone()
    diagonal[..., 0, :, :] += rows.first.mT @ rows.first
    diagonal[..., 1:, :, :] += rows.to.mT @ rows.to
    diagonal[..., :-1, :, :] += rows.back.mT @ rows.back
    return diagonal, -(rows.to.mT @ rows.back).expand(*batch, time - 1, n, n)


def evidence(rows: Rows, factor: Factor, mean: Tensor) -> Tensor:
    r""":math:`-\tfrac12 |w - J\mu|^2 - \tfrac12 \log\det\Lambda`, `(*batch)`, once differentiable.

    Args:
        rows: J and w.
        factor: Of :math:`\Lambda`, computed without gradient.
        mean: :math:`\mu`, `(*batch, time, n)`, computed without gradient.
    """
    return _Evidence.apply(*rows, factor, mean)  # type: ignore[no-any-return]


def minimiser(rows: Rows, factor: Factor) -> Tensor:
    r""":math:`\Lambda^{-1} J^\top w`, `(*sample, *batch, time, n)`, once differentiable.

    Args:
        rows: J and w; the entries of w may have sample dimensions in front.
        factor: Of :math:`\Lambda`, computed without gradient.
    """
    return _Minimiser.apply(*rows, factor)  # type: ignore[no-any-return]


class _Evidence(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> Tensor:  # noqa: ANN401
        *tensors, factor, mean = arguments
        ctx.factor = factor
        ctx.save_for_backward(*tensors, mean)
        return -0.5 * (Rows(*tensors).square(mean) + log_det(factor))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]  # noqa: ANN401
        *tensors, mean = ctx.saved_tensors
        rows = Rows(*tensors)
        cov, lower = selected_inverse(ctx.factor)
        by_step = grad[..., None, None]
        first, step, emit = rows.residual(mean)
        first, step, emit = grad[..., None] * first, by_step * step, by_step * emit
        weight = by_step[..., None]
        weighted, weighted_lower = weight * cov, weight * lower
        later, earlier = weighted[..., 1:, :, :], weighted[..., :-1, :, :]
        return (
            *_reduce(
                rows,
                _outer(first, mean[..., 0, :]) - rows.first @ weighted[..., 0, :, :],
                _outer(step, mean[..., 1:, :]) - rows.to @ later + rows.back @ weighted_lower.mT,
                rows.to @ weighted_lower - rows.back @ earlier - _outer(step, mean[..., :-1, :]),
                _outer(emit, mean) - rows.emit @ weighted,
                -first,
                -step,
                -emit,
            ),
            None,
            None,
        )


class _Minimiser(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> Tensor:  # noqa: ANN401
        *tensors, factor = arguments
        solution = _solve(factor, Rows(*tensors).right_hand_side())
        ctx.factor = factor
        ctx.save_for_backward(*tensors, solution)
        return solution

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]  # noqa: ANN401
        *tensors, z = ctx.saved_tensors
        rows = Rows(*tensors)
        v = _solve(ctx.factor, grad)
        first, step, emit = rows.residual(z)
        v_first, v_step, v_emit = rows.times(v)
        return *_reduce(
            rows,
            _outer(first, v[..., 0, :]) - _outer(v_first, z[..., 0, :]),
            _outer(step, v[..., 1:, :]) - _outer(v_step, z[..., 1:, :]),
            _outer(v_step, z[..., :-1, :]) - _outer(step, v[..., :-1, :]),
            _outer(emit, v) - _outer(v_emit, z),
            v_first,
            v_step,
            v_emit,
        ), None


def _solve(factor: Factor, rhs: Tensor) -> Tensor:
    """Solve for `rhs (*sample, *batch, time, n)`; samples become columns."""
    samples = rhs.dim() - factor.root.dim() + 1
    if samples <= 0:
        return solve(factor, rhs.unsqueeze(-1)).squeeze(-1)
    shape = rhs.shape[:samples]
    columns = rhs.flatten(0, samples - 1).movedim(0, -1)
    return solve(factor, columns).movedim(-1, 0).unflatten(0, shape)


def _reduce(rows: Rows, *grads: Tensor) -> tuple[Tensor, ...]:
    """Gradients summed over the dimensions along which their tensors were broadcast."""
    return tuple(g.sum_to_size(t.shape) for g, t in zip(grads, rows, strict=True))


def _outer(left: Tensor, right: Tensor) -> Tensor:
    return left.unsqueeze(-1) * right.unsqueeze(-2)


def _inverse(chol: Tensor) -> Tensor:
    eye = torch.eye(chol.shape[-1], dtype=chol.dtype, device=chol.device)
    return torch.linalg.solve_triangular(chol, eye.expand_as(chol), upper=False)


def _log_diagonal(chol: Tensor) -> Tensor:
    return chol.diagonal(dim1=-2, dim2=-1).log().sum(-1)


def _over_time(chol: Tensor, steps: int) -> Tensor:
    """Sum of the log determinants over `(*, steps | 1, n, n)`."""
    per_step = _log_diagonal(chol)
    return per_step.sum(-1) * (steps / max(per_step.shape[-1], 1))


HALF_LOG_TWO_PI = 0.5 * math.log(2 * math.pi)
