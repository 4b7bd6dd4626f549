r"""Symmetric positive definite block-tridiagonal systems by odd-even reduction.

The matrix :math:`\Lambda` has blocks :math:`D_t` on its diagonal and :math:`E_t` below it (row
:math:`t+1`, column :math:`t`). Each level eliminates every second block at once,

.. math::
    L_o L_o^\top = D_o,\quad U = L_o^{-1} \Lambda_{o,left},\quad V = L_o^{-1} \Lambda_{o,right},\quad
    D_{left} \leftarrow D_{left} - U^\top U,\; D_{right} \leftarrow D_{right} - V^\top V,\;
    E_{right,left} \leftarrow -V^\top U,

so that a sequence of length T takes :math:`\log_2 T` levels of batched matrix products, and the
memory is linear in T. It is the Cholesky factorisation in another order, hence as stable.

References:
    Heller (1976), cyclic reduction of block-tridiagonal systems; Erisman, Tinney (1975), selected inverse.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

from pyro_seq.ops.linalg import cholesky

__all__ = [
    "Factor",
    "factorise",
    "log_det",
    "log_det_of",
    "selected_inverse",
    "solve",
    "solve_with",
]


class Level(NamedTuple):
    """One level: `chol (*, odd, n, n)`, and `sides (*, odd, n, 2 n)` = [U, V]."""

    chol: Tensor
    sides: Tensor


class Factor(NamedTuple):
    """All levels, finest first, and the Cholesky factor `root (*, 1, n, n)` of the last block."""

    levels: tuple[Level, ...]
    root: Tensor


def factorise(diagonal: Tensor, lower: Tensor) -> Factor:
    r"""Factorise :math:`\Lambda`.

    Args:
        diagonal: D, `(*batch, time, n, n)`.
        lower: E, `(*batch, time - 1, n, n)`.

    Returns:
        The factor, differentiable by autograd.

    Raises:
        NotPositiveDefiniteError: When the matrix is not positive definite.
    """
    levels = []
    n = diagonal.shape[-1]
    while diagonal.shape[-3] > 1:
        odd = diagonal.shape[-3] // 2
        right = (diagonal.shape[-3] - 1) // 2
        chol = cholesky(diagonal[..., 1::2, :, :], "posterior precision")
        to_right = lower[..., 1::2, :, :].mT
        if right < odd:
            to_right = torch.cat([to_right, torch.zeros_like(lower[..., :1, :, :])], -3)
        sides = torch.linalg.solve_triangular(
            chol, torch.cat([lower[..., 0::2, :, :], to_right], -1), upper=False
        )
        gram = sides.mT @ sides
        kept = diagonal[..., 0::2, :, :]
        diagonal = torch.cat(
            [kept[..., :odd, :, :] - gram[..., :n, :n], kept[..., odd:, :, :]], -3
        )
        shift = torch.cat([torch.zeros_like(kept[..., :1, :, :]), gram[..., :right, n:, n:]], -3)
        diagonal = diagonal - shift
        lower = -gram[..., :right, n:, :n]
        levels.append(Level(chol, sides))
    return Factor(tuple(levels), cholesky(diagonal, "posterior precision"))


def log_det_of(factor: Factor) -> Tensor:
    r""":math:`\log \det \Lambda`, `(*batch)`."""
    chols = [level.chol for level in factor.levels] + [factor.root]
    diagonals = torch.cat([chol.diagonal(dim1=-2, dim2=-1) for chol in chols], -2)
    return 2.0 * diagonals.log().sum((-1, -2))


def solve_with(factor: Factor, rhs: Tensor) -> Tensor:
    r""":math:`\Lambda^{-1} h` for right-hand sides `(*batch, time, n, columns)`."""
    n = rhs.shape[-2]
    whites = []
    for chol, sides in factor.levels:
        odd, right = chol.shape[-3], (rhs.shape[-3] - 1) // 2
        white = torch.linalg.solve_triangular(chol, rhs[..., 1::2, :, :], upper=False)
        back = sides.mT @ white
        kept = rhs[..., 0::2, :, :]
        rhs = torch.cat([kept[..., :odd, :, :] - back[..., :n, :], kept[..., odd:, :, :]], -3)
        rhs = rhs - torch.cat(
            [torch.zeros_like(kept[..., :1, :, :]), back[..., :right, n:, :]], -3
        )
        whites.append(white)
    solution = torch.cholesky_solve(rhs, factor.root)
    for (chol, sides), white in zip(reversed(factor.levels), reversed(whites), strict=True):
        odd = chol.shape[-3]
        neighbours = torch.cat([solution[..., :odd, :, :], _right(solution, odd)], -2)
        mid = torch.linalg.solve_triangular(chol.mT, white - sides @ neighbours, upper=True)
        solution = _interleave(solution, mid)
    return solution


def selected_inverse(factor: Factor) -> tuple[Tensor, Tensor]:
    r"""The tridiagonal blocks of :math:`\Lambda^{-1}`.

    Returns:
        Diagonal blocks `(*batch, time, n, n)`, and the blocks below them `(*batch, time - 1, n, n)`.
    """
    n = factor.root.shape[-1]
    eye = torch.eye(n, dtype=factor.root.dtype, device=factor.root.device)
    diagonal = torch.cholesky_solve(eye.expand_as(factor.root), factor.root)
    lower = diagonal[..., :0, :, :]
    for chol, sides in reversed(factor.levels):
        odd, kept = chol.shape[-3], diagonal.shape[-3]
        inverse = torch.linalg.solve_triangular(chol, eye.expand_as(chol), upper=False)
        weight = inverse.mT @ sides
        below = (
            lower
            if kept > odd
            else torch.cat([lower, torch.zeros_like(diagonal[..., :1, :, :])], -3)
        )
        top = torch.cat([diagonal[..., :odd, :, :], below.mT], -1)
        bottom = torch.cat([below, _right(diagonal, odd)], -1)
        cross = -weight @ torch.cat([top, bottom], -2)
        middle = inverse.mT @ inverse - cross @ weight.mT
        to_left, to_right = cross[..., :n], cross[..., : kept - 1, :, n:].mT
        diagonal, lower = _interleave(diagonal, middle), _interleave(to_left, to_right)
    return diagonal, lower


def _right(kept: Tensor, odd: int) -> Tensor:
    """The right neighbour of each eliminated block, zero where there is none."""
    right = kept[..., 1 : odd + 1, :, :]
    if right.shape[-3] < odd:
        right = torch.cat([right, torch.zeros_like(kept[..., :1, :, :])], -3)
    return right


def _interleave(even: Tensor, odd: Tensor) -> Tensor:
    """Blocks e0 o0 e1 o1 ... along the third dimension from the end."""
    count = odd.shape[-3]
    mixed = torch.stack([even[..., :count, :, :], odd], -3).flatten(-4, -3)
    return mixed if even.shape[-3] == count else torch.cat([mixed, even[..., count:, :, :]], -3)


class _LogDet(torch.autograd.Function):
    r""":math:`d \log\det\Lambda = \mathrm{tr}(\Lambda^{-1} d\Lambda)`, from the selected inverse."""

    @staticmethod
    def forward(ctx: FunctionCtx, diagonal: Tensor, lower: Tensor, factor: Factor) -> Tensor:
        ctx.factor = factor  # type: ignore[attr-defined]
        return log_det_of(factor)

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, grad: Tensor) -> tuple[Tensor, Tensor, None]:  # type: ignore[override]
        diagonal, lower = selected_inverse(ctx.factor)  # type: ignore[attr-defined]
        grad = grad[..., None, None, None]
        return grad * diagonal, 2.0 * grad * lower, None


class _Solve(torch.autograd.Function):
    r""":math:`d x = \Lambda^{-1} (d h - d\Lambda\, x)`: the backward pass is one more solve."""

    @staticmethod
    def forward(
        ctx: FunctionCtx, diagonal: Tensor, lower: Tensor, rhs: Tensor, factor: Factor
    ) -> Tensor:
        solution = solve_with(factor, rhs)
        ctx.factor = factor  # type: ignore[attr-defined]
        ctx.save_for_backward(solution)
        return solution

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:  # type: ignore[override]
        (solution,) = ctx.saved_tensors  # type: ignore[attr-defined]
        adjoint = solve_with(ctx.factor, grad)  # type: ignore[attr-defined]
        outer = adjoint @ solution.mT
        ahead = adjoint[..., 1:, :, :] @ solution[..., :-1, :, :].mT
        behind = solution[..., 1:, :, :] @ adjoint[..., :-1, :, :].mT
        return -0.5 * (outer + outer.mT), -(ahead + behind), adjoint, None


def log_det(diagonal: Tensor, lower: Tensor, factor: Factor) -> Tensor:
    r""":math:`\log\det\Lambda`, with a backward pass through the selected inverse (once differentiable).

    Args:
        diagonal: D, `(*batch, time, n, n)`.
        lower: E, `(*batch, time - 1, n, n)`.
        factor: The factor of the same matrix, computed without gradient.
    """
    return _LogDet.apply(diagonal, lower, factor)  # type: ignore[no-any-return]


def solve(diagonal: Tensor, lower: Tensor, rhs: Tensor, factor: Factor) -> Tensor:
    r""":math:`\Lambda^{-1} h`, with one solve as its backward pass (once differentiable).

    Args:
        diagonal: D, `(*batch, time, n, n)`.
        lower: E, `(*batch, time - 1, n, n)`.
        rhs: h, `(*batch, time, n, columns)`.
        factor: The factor of the same matrix, computed without gradient.
    """
    return _Solve.apply(diagonal, lower, rhs, factor)  # type: ignore[no-any-return]
