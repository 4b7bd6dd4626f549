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

__all__ = ["Factor", "factorise", "selected_inverse", "selected_inverse_derivative", "solve"]

DENSE = 9


class Factor(NamedTuple):
    r"""What elimination leaves behind.

    Attributes:
        levels: :math:`[D_o^{-1}, W]` of each level, finest first, `(n, 3 n, odd, *batch)`.
        root: Cholesky factor of the dense remainder, `(*batch, rest * n, rest * n)`.
        log_det: :math:`\log \det \Lambda`, `(*batch)`.
        size: n.
    """

    levels: tuple[Tensor, ...]
    root: Tensor
    log_det: Tensor
    size: int


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
        beside = _beside(lower)
        level, log_dets = solve_positive(odd, torch.cat([eye.expand_as(odd), beside], 1))
        diagonal, lower = _reduced(diagonal, product(transpose(beside), level[:, n:]))
        levels.append(level)
        log_det = log_det + log_dets.sum(0)
    root = cholesky(_dense(diagonal, lower), "posterior precision", per_step=False)
    fine = torch.isfinite(log_det)
    if fine.device.type != "cpu":
        root = torch.where(fine[..., None, None], root, torch.nan)
    elif not fine.all():
        raise NotPositiveDefiniteError("posterior precision is not positive definite")
    log_det = log_det + 2.0 * root.diagonal(dim1=-2, dim2=-1).log().sum(-1)
    return Factor(tuple(levels), root, log_det, n)


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
    cov, lower = _blocks(torch.cholesky_inverse(factor.root), factor.size)
    for level in reversed(factor.levels):
        inverse, weight = level[:, : len(level)], level[:, len(level) :]
        cross = product(weight, _around(cov, lower, level.shape[2])).neg_()
        own = inverse - product(cross, transpose(weight))
        cov, lower = _refined(cov, own, cross)
    return cov[:, :, :time], lower[:, :, : time - 1]


def selected_inverse_derivative(
    factor: Factor, diagonal: Tensor, lower: Tensor
) -> tuple[Tensor, Tensor]:
    r"""The derivative of :func:`selected_inverse` in a direction :math:`\Lambda'`.

    .. math::
        [D_o^{-1}, W]' = D_o^{-1} ([0, B'] - D_o' [D_o^{-1}, W]), \quad
        (B^\top W)' = B'^\top W + W^\top (B' - D_o' W)

    and the product rule on the way back.

    Args:
        factor: Of :math:`\Lambda`.
        diagonal: Diagonal blocks of :math:`\Lambda'`, symmetric, `(n, n, time, *batch)`.
        lower: Blocks below them, `(n, n, time - 1, *batch)`.

    Returns:
        The tridiagonal blocks of :math:`-\Lambda^{-1} \Lambda' \Lambda^{-1}`, shaped alike.
    """
    n, time = diagonal.shape[1:3]
    zero, changes = torch.zeros_like(diagonal[:, :, :1]), []
    for level in factor.levels:
        if diagonal.shape[2] % 2 == 0:
            diagonal, lower = _append(diagonal, zero), _append(lower, zero)
        beside, moved = _beside(lower), product(diagonal[:, :, 1::2], level)
        rest = beside - moved[:, n:]
        changes.append(product(level[:, :n], torch.cat([-moved[:, :n], rest], 1)))
        weight = level[:, n:]
        schur = product(transpose(beside), weight) + product(transpose(weight), rest)
        diagonal, lower = _reduced(diagonal, schur)
    root = torch.cholesky_inverse(factor.root)
    cov, below = _blocks(root, n)
    d_cov, d_below = _blocks(-root @ _dense(diagonal, lower) @ root, n)
    for level, change in zip(reversed(factor.levels), reversed(changes), strict=True):
        weight, d_weight, odd = level[:, n:], change[:, n:], level.shape[2]
        around, d_around = _around(cov, below, odd), _around(d_cov, d_below, odd)
        cross = -product(weight, around)
        d_cross = -product(d_weight, around) - product(weight, d_around)
        own = level[:, :n] - product(cross, transpose(weight))
        d_own = product(d_cross, transpose(weight)) + product(cross, transpose(d_weight))
        cov, below = _refined(cov, own, cross)
        d_cov, d_below = _refined(d_cov, change[:, :n] - d_own, d_cross)
    return d_cov[:, :, :time], d_below[:, :, : time - 1]


def _beside(lower: Tensor) -> Tensor:
    """B of every second block."""
    return torch.cat([lower[:, :, 0::2], transpose(lower[:, :, 1::2])], 1)


def _reduced(diagonal: Tensor, schur: Tensor) -> tuple[Tensor, Tensor]:
    """The system of the neighbours, less what elimination takes from both sides of each block."""
    n = len(diagonal)
    diagonal = diagonal[:, :, 0::2].clone()
    diagonal[:, :, :-1].sub_(schur[:n, :n])
    diagonal[:, :, 1:].sub_(schur[n:, n:])
    return diagonal, -schur[n:, :n]


def _around(cov: Tensor, lower: Tensor, odd: int) -> Tensor:
    """Covariance of the two neighbours of every eliminated block, `(2 n, 2 n, odd, *batch)`."""
    even, below = cov[:, :, : odd + 1], lower[:, :, :odd]
    left = torch.cat([even[:, :, :-1], below])
    return torch.cat([left, torch.cat([transpose(below), even[:, :, 1:]])], 1)


def _refined(cov: Tensor, own: Tensor, cross: Tensor) -> tuple[Tensor, Tensor]:
    """Covariances with the eliminated blocks between their neighbours."""
    n, odd = len(own), own.shape[2]
    lower = _interleave(cross[:, :n], transpose(cross[:, n:]))
    return _interleave(cov[:, :, : odd + 1], own), lower


def _blocks(dense: Tensor, n: int) -> tuple[Tensor, Tensor]:
    """The tridiagonal blocks of a dense matrix of blocks of size n."""
    dense = dense.unflatten(-1, (-1, n)).unflatten(-3, (-1, n))
    own, below = (dense.diagonal(k, -4, -2).movedim((-3, -2, -1), (0, 1, 2)) for k in (0, -1))
    return own, below


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
