r"""Many small matrices at once, their own dimensions first: `(row, column, *many)`.

A library call for each 4 x 4 matrix costs far more than its arithmetic. Here the many dimensions
are last, hence contiguous, and every operation runs over all matrices together: a product is

.. math::
    A B = \sum_k A_{:k} B_{k:}

one rank-one update per :math:`k`, and a solve is Gaussian elimination, one per pivot. The many
dimensions broadcast.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = [
    "broadcast",
    "matrices_first",
    "matrices_last",
    "outer",
    "product",
    "solve_positive",
    "transpose",
]


def matrices_first(matrix: Tensor, many: int) -> Tensor:
    """`(*batch, time, n, m)` as `(n, m, time, *batch)`; `many` counts time and batch."""
    matrix = matrix.reshape(*[1] * (many + 2 - matrix.dim()), *matrix.shape)
    return matrix.permute(-2, -1, -3, *range(many - 1)).contiguous()


def matrices_last(matrix: Tensor) -> Tensor:
    """`(n, m, time, *batch)` as `(*batch, time, n, m)`."""
    return matrix.permute(*range(3, matrix.dim()), 2, 0, 1)


def broadcast(*sizes: Sequence[int]) -> tuple[int, ...]:
    """The sizes to which equally many sizes broadcast; `torch.broadcast_shapes` is slow."""
    return tuple(next((n for n in column if n != 1), 1) for column in zip(*sizes, strict=True))


def transpose(matrix: Tensor) -> Tensor:
    r""":math:`A^\top`, a view."""
    return matrix.transpose(0, 1)


def product(left: Tensor, right: Tensor) -> Tensor:
    r""":math:`A B` of `(n, k, *many)` and `(k, m, *many)`."""
    if _is_one(left):
        return (left.flatten(1) @ right.flatten(1)).reshape(len(left), *right.shape[1:])
    columns, rows = left.unsqueeze(1).unbind(2), right.unsqueeze(0).unbind(1)
    total = columns[0] * rows[0]
    for column, row in zip(columns[1:], rows[1:], strict=True):
        total.addcmul_(column, row)
    return total


def outer(left: Tensor, right: Tensor, like: Tensor) -> Tensor:
    r""":math:`A B^\top` of `(n, k, *many)` and `(m, k, *many)`, summed to the shape of `like`.

    B broadcasts to the many dimensions of A.
    """
    if not _is_one(like):
        return product(left, transpose(right)).sum_to_size(like.shape)
    right = right.expand(-1, *left.shape[1:])
    return (left.flatten(1) @ right.flatten(1).mT).reshape(like.shape)


def solve_positive(matrix: Tensor, rhs: Tensor) -> tuple[Tensor, Tensor]:
    r""":math:`D^{-1} B` and :math:`\log \det D` for symmetric positive definite :math:`D`.

    Args:
        matrix: D, `(n, n, *many)`.
        rhs: B, `(n, columns, *many)`.

    Returns:
        `(n, columns, *many)`, and `(*many)`, which is not finite where D is not positive definite.
    """
    n = len(matrix)
    table = torch.cat([matrix, rhs], 1)
    for k in range(n):
        table[k, k + 1 :].div_(table[k, k])
        below = table[k + 1 :, k, None], table[None, k, k + 1 :]
        table[k + 1 :, k + 1 :].addcmul_(*below, value=-1)
    solution = table[:, n:]
    for k in range(n - 1, 0, -1):
        solution[:k].addcmul_(table[:k, k, None], solution[None, k], value=-1)
    return solution, table.diagonal().log().sum(-1)


def _is_one(matrix: Tensor) -> bool:
    """Whether one matrix stands for all."""
    return matrix[0, 0].numel() == 1
