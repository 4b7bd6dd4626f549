"""Odd-even reduction against the dense matrix."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from pyro_seq.ops import block_tridiagonal as tridiagonal

LENGTHS = (1, 2, 3, 9, 10, 11, 19, 20, 21, 40)
BATCH, SIZE = 2, 2


def random_blocks(time: int) -> tuple[Tensor, Tensor]:
    """Blocks `(row, column, time, batch)` of a positive definite matrix."""
    generator = torch.Generator().manual_seed(time)

    def normal(count: int) -> Tensor:
        shape = (SIZE, SIZE, count, BATCH)
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    root, lower = normal(time), 0.5 * normal(time - 1)
    eye = torch.eye(SIZE, dtype=torch.float64)[:, :, None, None]
    return torch.einsum("iktb,jktb->ijtb", root, root) + 4 * eye, lower


def dense(diagonal: Tensor, lower: Tensor) -> Tensor:
    """The matrices of the batch, `(batch, time * n, time * n)`."""
    time = diagonal.shape[2]
    zero = torch.zeros_like(diagonal[:, :, 0])

    def block(row: int, column: int) -> Tensor:
        if row == column:
            return diagonal[:, :, row]
        if row == column + 1:
            return lower[:, :, column]
        return lower[:, :, row].transpose(0, 1) if column == row + 1 else zero

    rows = [torch.cat([block(r, c) for c in range(time)], 1) for r in range(time)]
    return torch.cat(rows).movedim(-1, 0)


@pytest.mark.parametrize("time", LENGTHS)
def test_log_det_and_solve(time: int) -> None:
    diagonal, lower = random_blocks(time)
    factor = tridiagonal.factorise(diagonal, lower)
    rhs = torch.randn(SIZE, 3, time, BATCH, dtype=torch.float64)
    matrix = dense(diagonal, lower)
    flat = rhs.permute(3, 2, 0, 1).reshape(BATCH, time * SIZE, 3)
    right = torch.linalg.solve(matrix, flat).reshape(BATCH, time, SIZE, 3).permute(2, 3, 1, 0)
    torch.testing.assert_close(factor.log_det, torch.logdet(matrix))
    torch.testing.assert_close(tridiagonal.solve(factor, rhs), right)


@pytest.mark.parametrize("time", LENGTHS)
def test_selected_inverse(time: int) -> None:
    diagonal, lower = random_blocks(time)
    blocks, below = tridiagonal.selected_inverse(tridiagonal.factorise(diagonal, lower), time)
    assert_tridiagonal_blocks(torch.linalg.inv(dense(diagonal, lower)), blocks, below)


@pytest.mark.parametrize("time", LENGTHS)
def test_derivative_of_the_selected_inverse(time: int) -> None:
    diagonal, lower = random_blocks(time)
    factor = tridiagonal.factorise(diagonal, lower)
    inverse = torch.linalg.inv(dense(diagonal, lower))
    direction = torch.randn_like(diagonal), torch.randn_like(lower)
    direction = direction[0] + direction[0].transpose(0, 1), direction[1]
    answer = tridiagonal.selected_inverse_derivative(factor, *direction)
    assert_tridiagonal_blocks(-inverse @ dense(*direction) @ inverse, *answer)


def assert_tridiagonal_blocks(matrix: Tensor, diagonal: Tensor, lower: Tensor) -> None:
    """The blocks are those of the dense matrix."""
    time = diagonal.shape[2]
    matrix, steps = matrix.reshape(BATCH, time, SIZE, time, SIZE), torch.arange(time)
    torch.testing.assert_close(diagonal, matrix[:, steps, :, steps].permute(2, 3, 0, 1))
    below = matrix[:, steps[1:], :, steps[:-1]].permute(2, 3, 0, 1)
    torch.testing.assert_close(lower, below)


@pytest.mark.parametrize("step", [0, 1, 19])
@pytest.mark.parametrize("time", [5, 20])
def test_an_indefinite_matrix_is_an_error(time: int, step: int) -> None:
    diagonal, lower = random_blocks(time)
    diagonal[:, :, min(step, time - 1), 1] -= 100 * torch.eye(SIZE)
    with pytest.raises(ValueError, match="precision is not positive definite"):
        tridiagonal.factorise(diagonal, lower)
