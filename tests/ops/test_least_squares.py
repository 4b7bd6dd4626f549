"""The analytic backward passes against autograd through dense matrices."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from pyro_seq.ops import kalman
from pyro_seq.ops.block_tridiagonal import Factor, factorise
from pyro_seq.ops.kalman.least_squares import LeastSquares, evidence, minimiser, normal_matrix
from tests.ops.test_block_tridiagonal import dense

STATE, OBS, TIME, BATCH = 3, 2, 12, 2
CONSTANT = ((1, 1), (1, 1), (1, 1))
VARYING = ((1, BATCH), (TIME - 1, BATCH), (TIME, BATCH))
LAYOUTS = {"varying": VARYING, "constant": CONSTANT, "noises": (VARYING[0], *CONSTANT[1:])}


def random_problem(layout: str, columns: int = 1) -> LeastSquares:
    """Leaves of a problem; those of "noises" have constant noises, of "constant" all but a."""
    generator = torch.Generator().manual_seed(0)
    noises = LAYOUTS[layout]
    first, step, seen = LAYOUTS["constant" if layout == "constant" else "varying"]

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    def precision(size: int, many: tuple[int, int]) -> Tensor:
        root = normal(size, size, *many)
        eye = torch.eye(size, dtype=torch.float64)[:, :, None, None]
        return torch.einsum("iktb,jktb->ijtb", root, root) + eye

    problem = LeastSquares(
        normal(STATE, columns, *first),
        normal(STATE, columns, *step),
        normal(OBS, columns, TIME, BATCH),
        0.5 * normal(STATE, STATE, *step),
        normal(OBS, STATE, *seen),
        *(precision(n, many) for n, many in zip((STATE, STATE, OBS), noises, strict=True)),
    )
    return LeastSquares(*(leaf.requires_grad_() for leaf in problem))


def dense_solution(problem: LeastSquares) -> tuple[Tensor, Tensor, Tensor]:
    """Minimiser and least square of each column, log determinant; nothing but the residuals."""
    columns = problem.value.shape[1]

    def flat(parts: tuple[Tensor, ...]) -> Tensor:
        wide = [p.expand(*p.shape[:3], BATCH).permute(3, 2, 0, 1) for p in parts]
        return torch.cat([w.reshape(BATCH, -1, w.shape[-1]) for w in wide], 1)

    size = TIME * STATE
    units = torch.eye(size, dtype=torch.float64).reshape(TIME, STATE, size, 1)
    units = units.permute(1, 2, 0, 3).expand(-1, -1, -1, BATCH)
    rows = problem.linear(units)
    right = flat(
        tuple(t.expand(-1, columns, -1, BATCH) for t in problem.residuals(0 * units[:, :columns]))
    )
    rows, weighted = flat(rows), flat(problem.weighted(rows))
    matrix = rows.mT @ weighted
    weighted_right = flat(problem.weighted(problem.residuals(0 * units[:, :columns])))
    solution = -torch.linalg.solve(matrix, weighted.mT @ right)
    square = (right * weighted_right).sum(-2) + ((weighted.mT @ right) * solution).sum(-2)
    return solution.reshape(BATCH, TIME, STATE, columns), square, torch.logdet(matrix)


def assert_same_gradients(problem: LeastSquares, answer: Tensor, expected: Tensor) -> None:
    """Value and gradients; those of the precisions count by their symmetric parts."""
    torch.testing.assert_close(answer, expected)
    weights = torch.randn(answer.shape, dtype=answer.dtype)
    found, right = (torch.autograd.grad((weights * t).sum(), problem) for t in (answer, expected))
    for index, (one, other) in enumerate(zip(found, right, strict=True)):
        if index >= 5:
            one, other = (g + g.transpose(0, 1) for g in (one, other))
        torch.testing.assert_close(one, other, msg=lambda m, i=index: f"{problem._fields[i]}: {m}")


def factor_of(problem: LeastSquares) -> Factor:
    """The factor without gradient."""
    with torch.no_grad():
        return factorise(*normal_matrix(problem))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_normal_matrix(layout: str) -> None:
    problem = random_problem(layout)
    blocks = [b.expand(-1, -1, -1, BATCH) for b in normal_matrix(problem)]
    torch.testing.assert_close(torch.logdet(dense(*blocks)), dense_solution(problem)[2])


@pytest.mark.parametrize("layout", LAYOUTS)
def test_evidence(layout: str) -> None:
    problem = random_problem(layout)
    _, square, log_det = dense_solution(problem)
    answer = evidence(problem, factor_of(problem))
    assert_same_gradients(problem, answer, -0.5 * (square[:, 0] + log_det))


@pytest.mark.parametrize("columns", [1, 3])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_minimiser(layout: str, columns: int) -> None:
    problem = random_problem(layout, columns)
    answer = minimiser(problem, factor_of(problem)).permute(3, 2, 0, 1)
    assert_same_gradients(problem, answer, dense_solution(problem)[0])


MOMENTS: dict[str, Callable[[kalman.Smoothed], Tensor]] = {
    "cov": lambda smoothed: smoothed.cov,
    "cross_cov": lambda smoothed: smoothed.cross_cov,
}


@pytest.mark.parametrize("name", MOMENTS)
def test_smoothed_covariances_have_gradients(name: str) -> None:
    """Against the sequential smoother, in a sequence long enough to be reduced."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    root = normal(BATCH, TIME, STATE, STATE)
    model = kalman.LinearGaussian(
        normal(STATE),
        torch.eye(STATE, dtype=torch.float64),
        0.5 * normal(BATCH, TIME, STATE, STATE),
        normal(1, STATE),
        root @ root.mT + 0.1 * torch.eye(STATE, dtype=torch.float64),
        normal(TIME, OBS, STATE),
        torch.eye(OBS, dtype=torch.float64)[None],
    )
    leaves = [model.initial_cov, model.transition, model.transition_cov, model.emission]
    leaves = [leaf.requires_grad_() for leaf in (*leaves, model.emission_cov)]
    value = normal(BATCH, TIME, OBS)
    covs = [
        MOMENTS[name](kalman.condition(model, value, algorithm=algorithm).smoothed())
        for algorithm in ("information", "sequential")
    ]
    torch.testing.assert_close(*covs)
    weights = normal(*covs[0].shape)
    found, right = (torch.autograd.grad((weights * cov).sum(), leaves) for cov in covs)
    for one, other in zip(found, right, strict=True):
        torch.testing.assert_close(one, other)
