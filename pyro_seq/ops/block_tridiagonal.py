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
    Heller (1976), cyclic reduction of block-tridiagonal systems; Erisman, Tinney (1975), selected
    inverse.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.linalg import solve_triangular

from pyro_seq.ops.linalg import cholesky

__all__ = ["Factor", "factorise", "log_det", "selected_inverse", "solve"]


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
        The factor.

    Raises:
        NotPositiveDefiniteError: When the matrix is not positive definite.
    """
    levels = []
    n = diagonal.shape[-1]
    while diagonal.shape[-3] > 1:
        odd, right = diagonal.shape[-3] // 2, (diagonal.shape[-3] - 1) // 2
        chol = cholesky(diagonal[..., 1::2, :, :], "posterior precision")
        beside = torch.cat([lower[..., 0::2, :, :], _padded(lower[..., 1::2, :, :].mT, odd)], -1)
        sides = solve_triangular(chol, beside, upper=False)
        left_side, right_side = sides[..., :n], sides[..., :right, :, n:]
        diagonal = diagonal[..., 0::2, :, :].clone()
        diagonal[..., :odd, :, :] -= left_side.mT @ left_side
        diagonal[..., 1 : right + 1, :, :] -= right_side.mT @ right_side
        lower = -(right_side.mT @ left_side[..., :right, :, :])
        levels.append(Level(chol, sides))
    return Factor(tuple(levels), cholesky(diagonal, "posterior precision"))


def log_det(factor: Factor) -> Tensor:
    r""":math:`\log \det \Lambda`, `(*batch)`."""
    chols = torch.cat([level.chol for level in factor.levels] + [factor.root], -3)
    return 2.0 * chols.diagonal(dim1=-2, dim2=-1).log().sum((-1, -2))


def solve(factor: Factor, rhs: Tensor) -> Tensor:
    r""":math:`\Lambda^{-1} h` for right-hand sides `(*batch, time, n, columns)`."""
    n = rhs.shape[-2]
    whites = []
    for chol, sides in factor.levels:
        odd, right = chol.shape[-3], (rhs.shape[-3] - 1) // 2
        white = solve_triangular(chol, rhs[..., 1::2, :, :], upper=False)
        back = sides.mT @ white
        rhs = rhs[..., 0::2, :, :].clone()
        rhs[..., :odd, :, :] -= back[..., :n, :]
        rhs[..., 1 : right + 1, :, :] -= back[..., :right, n:, :]
        whites.append(white)
    solution = torch.cholesky_solve(rhs, factor.root)
    for (chol, sides), white in zip(reversed(factor.levels), reversed(whites), strict=True):
        odd = chol.shape[-3]
        beside = torch.cat(
            [solution[..., :odd, :, :], _padded(solution[..., 1 : odd + 1, :, :], odd)], -2
        )
        middle = solve_triangular(chol.mT, white - sides @ beside, upper=True)
        solution = _interleave(solution, middle)
    return solution


def selected_inverse(factor: Factor) -> tuple[Tensor, Tensor]:
    r"""The tridiagonal blocks of :math:`\Lambda^{-1}`.

    Returns:
        Diagonal blocks `(*batch, time, n, n)`, and those below them `(*batch, time - 1, n, n)`.
    """
    n = factor.root.shape[-1]
    eye = torch.eye(n, dtype=factor.root.dtype, device=factor.root.device)
    diagonal = torch.cholesky_solve(eye.expand_as(factor.root), factor.root)
    lower = diagonal[..., :0, :, :]
    for chol, sides in reversed(factor.levels):
        odd, kept = chol.shape[-3], diagonal.shape[-3]
        inverse = solve_triangular(chol, eye.expand_as(chol), upper=False)
        weight = inverse.mT @ sides
        below = _padded(lower, odd)
        right = _padded(diagonal[..., 1 : odd + 1, :, :], odd)
        top = torch.cat([diagonal[..., :odd, :, :], below.mT], -1)
        cross = -(weight @ torch.cat([top, torch.cat([below, right], -1)], -2))
        middle = inverse.mT @ inverse - cross @ weight.mT
        to_left, to_right = cross[..., :n], cross[..., : kept - 1, :, n:].mT
        diagonal, lower = _interleave(diagonal, middle), _interleave(to_left, to_right)
    return diagonal, lower


def _padded(blocks: Tensor, count: int) -> Tensor:
    """The first `count` blocks, with a zero block behind where one is lacking."""
    if blocks.shape[-3] >= count:
        return blocks[..., :count, :, :]
    shape = (*blocks.shape[:-3], 1, *blocks.shape[-2:])
    return torch.cat([blocks, blocks.new_zeros(shape)], -3)


def _interleave(even: Tensor, odd: Tensor) -> Tensor:
    """Blocks e0 o0 e1 o1 ... along the third dimension from the end."""
    count = odd.shape[-3]
    mixed = torch.stack([even[..., :count, :, :], odd], -3).flatten(-4, -3)
    return mixed if even.shape[-3] == count else torch.cat([mixed, even[..., count:, :, :]], -3)
