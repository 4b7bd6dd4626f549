r"""Symmetric positive definite block-tridiagonal systems by odd-even reduction.

The matrix :math:`\Lambda` has blocks :math:`D_t` on its diagonal and :math:`E_t` below it (row
:math:`t+1`, column :math:`t`). Each level eliminates every second block :math:`o` at once, by
means of its two neighbours (an identity block is put behind a last one that lacks the right),

.. math::
    B = [\Lambda_{o,left}, \Lambda_{o,right}],\quad W = D_o^{-1} B,\quad
    \Lambda_{neighbours} \leftarrow \Lambda_{neighbours} - B^\top W,

until the few blocks that remain are factorised as one dense matrix. A sequence of length T takes
:math:`\log_2 T` levels, each some operations over all its blocks, and memory linear in T. It is
block Gaussian elimination in another order, hence as stable. Solutions and covariances come back
by :math:`x_o = D_o^{-1} h_o - W x_{neighbours}`.

Blocks lie as in :mod:`pyro_seq.ops.small_matrices`: `(row, column, time, *batch)`.

References:
    Heller (1976), cyclic reduction of block-tridiagonal systems; Erisman, Tinney (1975), selected
    inverse.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from pyro_seq.ops.linalg import NotPositiveDefiniteError, cholesky
from pyro_seq.ops.small_matrices import product, solve_positive, transpose

__all__ = ["Factor", "factorise", "selected_inverse", "solve"]

DENSE = 9


class Factor(NamedTuple):
    r"""What elimination leaves behind.

    Attributes:
        levels: :math:`[D_o^{-1}, W]` of each level, finest first, `(n, 3 n, odd, *batch)`.
        root: Cholesky factor of the dense remainder, `(*batch, rest * n, rest * n)`.
        log_det: :math:`\log \det \Lambda`, `(*batch)`.
    """

    levels: tuple[Tensor, ...]
    root: Tensor
    log_det: Tensor


def factorise(diagonal: Tensor, lower: Tensor) -> Factor:
    r"""Factorise :math:`\Lambda`.

    Args:
        diagonal: D, `(n, n, time, *batch)`.
        lower: E, `(n, n, time - 1, *batch)`.

    Returns:
        The factor.

    Raises:
        NotPositiveDefiniteError: On the CPU, when the matrix is not positive definite; elsewhere
            all that follows is NaN.
    """
    n = len(diagonal)
    eye = torch.eye(n, dtype=diagonal.dtype, device=diagonal.device)
    eye = eye.reshape(n, n, *[1] * (diagonal.dim() - 2))
    levels, log_det = [], diagonal.new_zeros(diagonal.shape[3:])
    while diagonal.shape[2] > DENSE:
        if diagonal.shape[2] % 2 == 0:
            diagonal, lower = _append(diagonal, eye), _append(lower, torch.zeros_like(eye))
        odd = diagonal[:, :, 1::2]
        beside = torch.cat([lower[:, :, 0::2], transpose(lower[:, :, 1::2])], 1)
        level, log_dets = solve_positive(odd, torch.cat([eye.expand_as(odd), beside], 1))
        schur = product(transpose(beside), level[:, n:])
        diagonal = diagonal[:, :, 0::2].clone()
        diagonal[:, :, :-1].sub_(schur[:n, :n])
        diagonal[:, :, 1:].sub_(schur[n:, n:])
        lower = -schur[n:, :n]
        levels.append(level)
        log_det = log_det + log_dets.sum(0)
    root = cholesky(_dense(diagonal, lower), "posterior precision", per_step=False)
    fine = torch.isfinite(log_det)
    if fine.device.type != "cpu":
        root = torch.where(fine[..., None, None], root, torch.nan)
    elif not fine.all():
        raise NotPositiveDefiniteError("posterior precision is not positive definite")
    log_det = log_det + 2.0 * root.diagonal(dim1=-2, dim2=-1).log().sum(-1)
    return Factor(tuple(levels), root, log_det)


def solve(factor: Factor, rhs: Tensor) -> Tensor:
    r""":math:`\Lambda^{-1} h` for right-hand sides `(n, columns, time, *batch)`."""
    n, time = len(rhs), rhs.shape[2]
    whites = []
    for level in factor.levels:
        if rhs.shape[2] % 2 == 0:
            rhs = _append(rhs, torch.zeros_like(rhs[:, :, :1]))
        white, left, right = product(transpose(level), rhs[:, :, 1::2]).split(n)
        rhs = rhs[:, :, 0::2].clone()
        rhs[:, :, :-1].sub_(left)
        rhs[:, :, 1:].sub_(right)
        whites.append(white)
    flat = rhs.movedim((2, 0, 1), (-3, -2, -1)).flatten(-3, -2)
    flat = torch.cholesky_solve(flat, factor.root).unflatten(-2, (-1, n))
    solution = flat.movedim((-2, -1, -3), (0, 1, 2))
    for level, white in zip(reversed(factor.levels), reversed(whites), strict=True):
        even = solution[:, :, : level.shape[2] + 1]
        beside = torch.cat([even[:, :, :-1], even[:, :, 1:]])
        solution = _interleave(even, white - product(level[:, n:], beside))
    return solution[:, :, :time]


def selected_inverse(factor: Factor, time: int) -> tuple[Tensor, Tensor]:
    r"""The tridiagonal blocks of :math:`\Lambda^{-1}`.

    Args:
        factor: Of :math:`\Lambda`.
        time: Number of blocks.

    Returns:
        Diagonal blocks `(n, n, time, *batch)`, and those below them `(n, n, time - 1, *batch)`.
    """
    n = factor.levels[0].shape[0] if factor.levels else factor.root.shape[-1] // time
    eye = torch.eye(factor.root.shape[-1], dtype=factor.root.dtype, device=factor.root.device)
    dense = torch.cholesky_solve(eye, factor.root).unflatten(-1, (-1, n)).unflatten(-3, (-1, n))
    cov, lower = (dense.diagonal(k, -4, -2).movedim((-3, -2, -1), (0, 1, 2)) for k in (0, -1))
    for level in reversed(factor.levels):
        inverse, weight, odd = level[:, :n], level[:, n:], level.shape[2]
        even, below = cov[:, :, : odd + 1], lower[:, :, :odd]
        left = torch.cat([even[:, :, :-1], below])
        right = torch.cat([transpose(below), even[:, :, 1:]])
        cross = -product(weight, torch.cat([left, right], 1))
        cov = _interleave(even, inverse - product(cross, transpose(weight)))
        lower = _interleave(cross[:, :n], transpose(cross[:, n:]))
    return cov[:, :, :time], lower[:, :, : time - 1]


def _dense(diagonal: Tensor, lower: Tensor) -> Tensor:
    """The matrix of few blocks, `(*batch, time * n, time * n)`."""
    n, time = diagonal.shape[1:3]
    matrix = diagonal.new_zeros(*diagonal.shape[3:], time, n, time, n)
    for offset, blocks in ((0, diagonal), (-1, lower), (1, transpose(lower))):
        place = matrix.diagonal(offset, -4, -2).movedim((-3, -2, -1), (0, 1, 2))
        place.copy_(blocks)
    return matrix.flatten(-4, -3).flatten(-2, -1)


def _append(blocks: Tensor, last: Tensor) -> Tensor:
    """One more block, `(n, m, 1, *batch)`, at the end."""
    return torch.cat([blocks, last.expand(*blocks.shape[:2], 1, *blocks.shape[3:])], 2)


def _interleave(even: Tensor, odd: Tensor) -> Tensor:
    """Blocks e0 o0 e1 o1 ... over time."""
    mixed = odd.new_empty(*odd.shape[:2], even.shape[2] + odd.shape[2], *odd.shape[3:])
    mixed[:, :, 0::2], mixed[:, :, 1::2] = even, odd
    return mixed
