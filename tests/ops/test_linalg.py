"""Errors that name the matrix and the place."""

from __future__ import annotations

import pytest
import torch

from pyro_seq.ops.linalg import check_positive_definite, cholesky, matvec, no_autocast


def test_cholesky_names_matrix_step_and_batch_element() -> None:
    matrix = torch.eye(2).repeat(3, 4, 1, 1)
    torch.testing.assert_close(cholesky(matrix, "some_cov"), matrix)
    matrix[2, 1] = torch.tensor([[1.0, 2.0], [2.0, 1.0]])
    for function in (cholesky, check_positive_definite):
        with pytest.raises(ValueError, match=r"some_cov.*step 1\b.*\(2,\).*-1\b"):
            function(matrix, "some_cov")


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_values_that_are_not_finite_are_named(bad: float) -> None:
    matrix = torch.eye(2).repeat(3, 1, 1)
    matrix[1, 0, 0] = bad
    for function in (cholesky, check_positive_definite):
        with pytest.raises(ValueError, match=r"some_cov.*\(1,\).*finite"):
            function(matrix, "some_cov", per_step=False)


def test_no_autocast_keeps_the_precision() -> None:
    matrix, vector = torch.randn(3, 2, 2), torch.randn(3, 2)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert matvec(matrix, vector).dtype == torch.bfloat16
        with no_autocast(matrix.device):
            torch.testing.assert_close(
                matvec(matrix, vector), (matrix * vector[:, None]).sum(-1), rtol=1e-6, atol=1e-6
            )
