"""Odd-even reduction against the dense matrix."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from pyro_seq.ops import block_tridiagonal as tridiagonal

LENGTHS = (1, 2, 3, 4, 5, 7, 8, 9)


def random_blocks(time: int, size: int = 2) -> tuple[Tensor, Tensor]:
    """Blocks of a positive definite matrix, batch 2."""
    generator = torch.Generator().manual_seed(time)

    def normal(count: int) -> Tensor:
        return torch.randn(2, count, size, size, generator=generator, dtype=torch.float64)

    root, lower = normal(time), 0.5 * normal(time - 1)
    diagonal = root @ root.mT + 4 * torch.eye(size, dtype=torch.float64)
    return diagonal.requires_grad_(), lower.requires_grad_()


def assemble(diagonal: Tensor, lower: Tensor) -> Tensor:
    """The dense matrix of one batch element."""
    time, size = diagonal.shape[0], diagonal.shape[-1]
    zero = diagonal.new_zeros(size, size)

    def block(row: int, column: int) -> Tensor:
        if row == column:
            return diagonal[row]
        if row == column + 1:
            return lower[column]
        return lower[row].T if column == row + 1 else zero

    return torch.cat([torch.cat([block(r, c) for c in range(time)], 1) for r in range(time)])


def both(diagonal: Tensor, lower: Tensor) -> Tensor:
    """The dense matrices of the batch."""
    return torch.stack([assemble(*pair) for pair in zip(diagonal, lower, strict=True)])


@pytest.mark.parametrize("time", LENGTHS)
def test_log_det_and_solve(time: int) -> None:
    diagonal, lower = random_blocks(time)
    rhs = torch.randn(2, time, 2, 3, dtype=torch.float64)
    factor = tridiagonal.factorise(diagonal, lower)
    matrix = both(diagonal, lower)
    right = torch.linalg.solve(matrix, rhs.flatten(1, 2)).reshape(rhs.shape)
    torch.testing.assert_close(tridiagonal.log_det(factor), torch.logdet(matrix))
    torch.testing.assert_close(tridiagonal.solve(factor, rhs), right)


@pytest.mark.parametrize("time", LENGTHS)
def test_selected_inverse_with_its_gradient(time: int) -> None:
    diagonal, lower = random_blocks(time)
    blocks, below = tridiagonal.selected_inverse(tridiagonal.factorise(diagonal, lower))
    inverse = torch.linalg.inv(both(diagonal, lower)).reshape(2, time, 2, time, 2)
    steps = torch.arange(time)
    right = inverse[:, steps, :, steps].movedim(0, 1)
    right_below = inverse[:, steps[1:], :, steps[:-1]].movedim(0, 1)
    torch.testing.assert_close(blocks, right)
    torch.testing.assert_close(below, right_below)
    weights = [torch.randn_like(b) for b in (blocks, below)]
    pairs = ((blocks, below), (right, right_below))
    sums = [sum((w * b).sum() for w, b in zip(weights, pair, strict=True)) for pair in pairs]
    answer, expected = (
        torch.autograd.grad(s, (diagonal, lower), materialize_grads=True) for s in sums
    )
    torch.testing.assert_close(answer[0] + answer[0].mT, expected[0] + expected[0].mT)
    torch.testing.assert_close(answer[1], expected[1])


def test_an_indefinite_matrix_is_an_error() -> None:
    diagonal, lower = random_blocks(5)
    with pytest.raises(ValueError, match="precision"):
        tridiagonal.factorise(diagonal - 100 * torch.eye(2), lower)
