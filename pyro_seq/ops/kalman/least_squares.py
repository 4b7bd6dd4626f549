r"""The linear-Gaussian model as a weighted least-squares problem, and what autograd needs of it.

:math:`-2 \log p(a, z) = \sum r^\top K r + const` over the residuals, predicted minus found,

.. math::
    m_1 - z_1 \; (K = P_1^{-1}),\quad A_t z_{t-1} + b_t - z_t \; (K = Q_t^{-1}),\quad
    C_t z_t - a_t \; (K = R_t^{-1}),

is quadratic in z with the block-tridiagonal matrix :math:`\Lambda` and minimiser :math:`\mu`. Two
functions of it have a backward pass here, each by means of expected second moments:

.. math::
    \max_z \log p(a, z) - \tfrac12 \log\det\Lambda:\quad &E \text{ over } N(\mu, \Lambda^{-1}) \\
    \mu:\quad &E[f(z)] = \tfrac{d}{d\epsilon} f(\mu + \epsilon v), \quad
    v = \Lambda^{-1} \partial / \partial \mu

The first is Fisher's identity, the second the derivative of the optimality condition. In both the
gradient of a residual :math:`r = M z + y` is :math:`-K E[r z^\top]` for M, :math:`-K E[r]` for y
and :math:`-\tfrac12 E[r r^\top]` for K.

Matrices lie as in :mod:`pyro_seq.ops.small_matrices`, `(row, column, time, *batch)`; vectors have
one column, or one per sample.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from pyro_seq.ops.block_tridiagonal import Factor, selected_inverse, solve
from pyro_seq.ops.small_matrices import broadcast, outer, product, transpose

__all__ = ["HALF_LOG_TWO_PI", "LeastSquares", "evidence", "minimiser", "normal_matrix"]

HALF_LOG_TWO_PI = 0.5 * math.log(2 * math.pi)


class Parts(NamedTuple):
    """A vector for the first state `(n, columns, 1, *)`, the steps and the observations."""

    first: Tensor
    step: Tensor
    seen: Tensor


class LeastSquares(NamedTuple):
    """The terms of the problem; `steps` is `time - 1`, or 1 where it is constant.

    Shapes: `initial_loc (n, 1, 1, *)`, `offset (n, 1, steps, *)`, `value (obs, 1, time, *)`,
    `transition (n, n, steps, *)`, `emission (obs, n, time | 1, *)`, and the precisions
    `initial (n, n, 1, *)`, `process (n, n, steps, *)`, `measurement (obs, obs, time | 1, *)`.
    """

    initial_loc: Tensor
    offset: Tensor
    value: Tensor
    transition: Tensor
    emission: Tensor
    initial: Tensor
    process: Tensor
    measurement: Tensor

    def linear(self, z: Tensor) -> Parts:
        """The residuals' part that is linear in `z (n, columns, time, *)`."""
        step = product(self.transition, z[:, :, :-1]) - z[:, :, 1:]
        return Parts(-z[:, :, :1], step, product(self.emission, z))

    def residuals(self, z: Tensor) -> Parts:
        """Predicted minus found: the first state, the steps, the observations."""
        first, step, seen = self.linear(z)
        return Parts(first + self.initial_loc, step + self.offset, seen - self.value)

    def weighted(self, parts: Parts) -> Parts:
        """Precision times residual."""
        return Parts(*(product(k, part) for k, part in zip(self[5:], parts, strict=True)))

    def square(self, z: Tensor) -> Tensor:
        r""":math:`\sum r^\top K r`, `(columns, *batch)`."""
        residuals = self.residuals(z)
        pairs = zip(residuals, self.weighted(residuals), strict=True)
        first, step, seen = ((r * weighted).sum((0, 2)) for r, weighted in pairs)
        return first + step + seen

    def right_hand_side(self) -> Tensor:
        r""":math:`\Lambda \mu`, `(n, columns, time, *batch)`."""
        first, step, seen = self.weighted(Parts(self.initial_loc, self.offset, self.value))
        seen, leaving = (
            product(transpose(matrix), part)
            for matrix, part in ((self.emission, seen), (self.transition, step))
        )
        sizes = ((part.shape[1], *part.shape[3:]) for part in (first, step, seen, leaving))
        columns, *batch = broadcast(*sizes)
        total = seen.expand(-1, columns, self.value.shape[2], *batch).clone()
        total[:, :, :1].add_(first)
        total[:, :, 1:].add_(step)
        total[:, :, :-1].sub_(leaving)
        return total


def normal_matrix(problem: LeastSquares) -> tuple[Tensor, Tensor]:
    r"""The blocks of :math:`\Lambda` on and below its diagonal.

    Returns:
        `(n, n, time, *batch)` and `(n, n, time - 1, *batch)`, where the batch dimensions are those
        of the matrices, not of the values.
    """
    _, _, value, transition, emission, initial, process, measurement = problem
    n, time, batch = len(initial), value.shape[2], broadcast(*(t.shape[3:] for t in problem[3:]))
    leaving = product(process, transition)
    own = product(transpose(emission), product(measurement, emission))
    diagonal = own.expand(n, n, time, *batch).clone()
    diagonal[:, :, :1].add_(initial)
    diagonal[:, :, 1:].add_(process)
    diagonal[:, :, :-1].add_(product(transpose(transition), leaving))
    return diagonal, -leaving.expand(n, n, time - 1, *batch)


def evidence(problem: LeastSquares, factor: Factor) -> Tensor:
    r""":math:`-\tfrac12 \min_z \sum r^\top K r - \tfrac12 \log\det\Lambda`, `(*batch)`.

    Differentiable once.

    Args:
        problem: With one column.
        factor: Of :math:`\Lambda`, computed without gradient.
    """
    return _Evidence.apply(*problem, factor)


def minimiser(problem: LeastSquares, factor: Factor) -> Tensor:
    r""":math:`\mu`, `(n, columns, time, *batch)`. Differentiable once.

    Args:
        problem: With any number of columns.
        factor: Of :math:`\Lambda`, computed without gradient.
    """
    return _Minimiser.apply(*problem, factor)


class _Evidence(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> Tensor:  # noqa: ANN401
        *tensors, factor = arguments
        problem = LeastSquares(*tensors)
        mean = solve(factor, problem.right_hand_side())
        ctx.factor = factor
        ctx.save_for_backward(*tensors, mean)
        return -0.5 * (problem.square(mean).squeeze(0) + factor.log_det)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401
        *tensors, mean = ctx.saved_tensors
        problem = LeastSquares(*tensors)
        _, _, _, transition, emission, initial, process, measurement = problem
        cov, lower = (grad * block for block in selected_inverse(ctx.factor, mean.shape[2]))
        moved = product(transition, cov[:, :, :-1]) - lower
        shown = product(emission, cov)
        residuals = problem.residuals(mean)
        weights = Parts(*(grad * residual for residual in residuals))
        weighted = problem.weighted(weights)
        means = _outers(problem, weighted, mean)
        squares = _squares(problem, weights, residuals)
        spread = outer(moved - lower, transition, process)
        spread = spread + cov[:, :, 1:].sum_to_size(process.shape)
        return (
            *_summed(
                problem,
                -weighted.first,
                -weighted.step,
                weighted.seen,
                product(process, moved).sum_to_size(transition.shape).add_(means[0]).neg_(),
                product(measurement, shown).sum_to_size(emission.shape).add_(means[1]).neg_(),
                -0.5 * (squares.first + cov[:, :, :1].sum_to_size(initial.shape)),
                -0.5 * (squares.step + spread),
                -0.5 * (squares.seen + outer(shown, emission, measurement)),
            ),
            None,
        )


class _Minimiser(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> Tensor:  # noqa: ANN401
        *tensors, factor = arguments
        solution = solve(factor, LeastSquares(*tensors).right_hand_side())
        ctx.factor = factor
        ctx.save_for_backward(*tensors, solution)
        return solution

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401
        *tensors, z = ctx.saved_tensors
        problem = LeastSquares(*tensors)
        v = solve(ctx.factor, grad)
        residuals, moves = problem.residuals(z), problem.linear(v)
        weighted = problem.weighted(moves)
        straight = _outers(problem, weighted, z)
        crossed = _outers(problem, problem.weighted(residuals), v)
        squares = _squares(problem, moves, residuals)  # one half of a symmetric matrix
        return (
            *_summed(
                problem,
                -weighted.first,
                -weighted.step,
                weighted.seen,
                -(straight[0] + crossed[0]),
                -(straight[1] + crossed[1]),
                -squares.first,
                -squares.step,
                -squares.seen,
            ),
            None,
        )


def _outers(problem: LeastSquares, parts: Parts, z: Tensor) -> tuple[Tensor, Tensor]:
    r""":math:`r z^\top` of the steps and of the observations, shaped as their matrices."""
    return (
        outer(parts.step, z[:, :, :-1], problem.transition),
        outer(parts.seen, z, problem.emission),
    )


def _squares(problem: LeastSquares, left: Parts, right: Parts) -> Parts:
    r""":math:`r s^\top`, shaped as the precisions."""
    return Parts(*(outer(*terms) for terms in zip(left, right, problem[5:], strict=True)))


def _summed(problem: LeastSquares, *grads: Tensor) -> tuple[Tensor, ...]:
    """Gradients summed over the dimensions along which their tensors were broadcast."""
    return tuple(g.sum_to_size(t.shape) for g, t in zip(grads, problem, strict=True))
