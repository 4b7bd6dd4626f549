r"""Small linear algebra with errors that name the matrix and the step."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = [
    "NotPositiveDefiniteError",
    "check_positive_definite",
    "cholesky",
    "matvec",
    "no_autocast",
    "symmetrise",
]


class NotPositiveDefiniteError(ValueError):
    """A covariance matrix is not symmetric positive definite."""


def no_autocast(device: torch.device) -> torch.autocast:
    """A context in which mixed precision leaves matrix products alone."""
    return torch.autocast(device.type, enabled=False)


def matvec(matrix: Tensor, vector: Tensor) -> Tensor:
    r""":math:`M v` over matching batch dimensions: `(*, n, m), (*, m) -> (*, n)`."""
    return (matrix @ vector.unsqueeze(-1)).squeeze(-1)


def symmetrise(matrix: Tensor) -> Tensor:
    r""":math:`(M + M^\top) / 2` over the last two dimensions."""
    return 0.5 * (matrix + matrix.mT)


def cholesky(matrix: Tensor, name: str, *, per_step: bool = True, first_step: int = 0) -> Tensor:
    r"""Lower Cholesky factor :math:`L L^\top = M`, loud when there is none.

    On the CPU a failure raises. On an accelerator a check would wait for the device at every
    training step, so the factor of a failed matrix becomes NaN instead and with it everything
    that is computed from it; :func:`check_positive_definite` finds the culprit afterwards.

    Args:
        matrix: Symmetric positive definite, `(*batch, time, n, n)`, or `(*batch, n, n)` when
            `per_step` is false.
        name: What the matrix is called in the error.
        per_step: Whether the dimension before the matrix counts time steps.
        first_step: Number of the first of them.

    Returns:
        The lower triangular factor, of the shape of `matrix`.

    Raises:
        NotPositiveDefiniteError: On the CPU, naming the matrix and the first failing step.
    """
    factor, info = torch.linalg.cholesky_ex(matrix)
    if matrix.device.type == "cpu":
        if info.any():
            check_positive_definite(matrix, name, per_step=per_step, first_step=first_step)
        return factor
    return torch.where((info == 0)[..., None, None], factor, torch.nan)


def check_positive_definite(
    matrix: Tensor, name: str, *, per_step: bool = True, first_step: int = 0
) -> None:
    r"""Raise unless every matrix of the batch has a finite Cholesky factor.

    Args:
        matrix: `(*batch, time, n, n)`, or `(*batch, n, n)` when `per_step` is false.
        name: What the matrix is called in the error.
        per_step: Whether the dimension before the matrix counts time steps.
        first_step: Number of the first of them.

    Raises:
        NotPositiveDefiniteError: Naming the matrix, the step, the batch element and the
            smallest eigenvalue found there.
    """
    matrix = matrix.detach()
    gap = (matrix - matrix.mT).abs().amax()
    if gap > 1e-4 * matrix.abs().amax():
        raise NotPositiveDefiniteError(
            f"{name} is not symmetric: entries across the diagonal differ by {float(gap):.3g}. "
            f"Expected a symmetric positive definite covariance; pass (M + M.mT) / 2"
        )
    factor, info = torch.linalg.cholesky_ex(matrix)
    bad = (info != 0) | ~torch.isfinite(factor).all(-1).all(-1)
    if not bad.any():
        return
    index = tuple(int(i) for i in bad.nonzero()[0])
    culprit = matrix[index]
    where = ""
    if per_step:
        *batch, step = index
        where = f" at step {step + first_step} (counted from 0)"
        if matrix.shape[-3] == 1:
            where = " at step 0 (it is constant over time, or there is one step only)"
    else:
        batch = list(index)
    if batch:
        where += f", batch element {tuple(batch)}"
    found = "it holds values that are not finite"
    if torch.isfinite(culprit).all():
        smallest = torch.linalg.eigvalsh(symmetrise(culprit))[0]
        found = f"its smallest eigenvalue is {float(smallest):.3g}"
    raise NotPositiveDefiniteError(
        f"{name} is not positive definite{where}: {found}. Expected a symmetric positive definite "
        f"covariance of {culprit.shape[-1]} rows; raise its diagonal or check how it is built."
    )
