"""The oracles are judged too: against the generative equations, SciPy and each other."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from tests.ops import dense, textbook
from tests.ops.cases import LAYOUTS, build_model, random_leaves, random_mask
from tests.ops.noise import affine_map, noise_count


def single(name: str) -> tuple[dense.Model, Tensor, Tensor]:
    """The first sequence of a case, without gradients."""
    layout = LAYOUTS[name]
    leaves = {key: value.detach() for key, value in random_leaves(layout).items()}
    model = dense.expand(build_model(leaves), torch.Size(layout.batch))
    first = (0,) * len(layout.batch)
    mask = random_mask(layout, "coordinates")
    return dense.Model(*[p[first] for p in model]), leaves["a"][first], mask[first]


def generate(model: dense.Model, time: int) -> tuple[Tensor, Tensor]:
    """Draw z and a by the generative equations themselves."""

    def normal(cov: Tensor) -> Tensor:
        return torch.linalg.cholesky(cov) @ torch.randn(len(cov), dtype=cov.dtype)

    z, a = [model.initial_loc + normal(model.initial_cov)], []
    for t in range(1, time):
        moved = dense.at(model.transition, t) @ z[-1] + dense.at(model.offset, t)
        z.append(moved + normal(dense.at(model.transition_cov, t)))
    for t in range(time):
        a.append(dense.at(model.emission, t) @ z[t] + normal(dense.at(model.emission_cov, t)))
    return torch.stack(z), torch.stack(a)


@pytest.mark.parametrize("name", ["constant", "varying", "one_step", "scalar"])
def test_joint_moments_follow_from_the_generative_equations(name: str) -> None:
    model, a, _ = single(name)
    offset, matrix = affine_map(lambda: torch.cat([x.flatten() for x in generate(model, len(a))]))
    full = dense.joint(model, len(a))
    upper = torch.cat([full.cov_z, full.cov_za], dim=1)
    cov = torch.cat([upper, torch.cat([full.cov_za.T, full.cov_a], dim=1)])
    torch.testing.assert_close(offset, torch.cat([full.loc_z, full.loc_a]), rtol=0, atol=1e-12)
    torch.testing.assert_close(matrix @ matrix.T, cov, rtol=0, atol=1e-12)


def test_log_prob_is_scipys() -> None:
    model, a, mask = single("varying")
    full, index = dense.joint(model, len(a)), dense.observed(a, mask)
    loc, cov, value = full.loc_a[index], full.cov_a[index][:, index], a.flatten()[index]
    expected = stats.multivariate_normal(loc.numpy(), cov.numpy()).logpdf(value.numpy())
    assert dense.log_prob(model, a, mask).item() == pytest.approx(expected)


def test_filtering_terms_add_up_and_end_at_the_posterior() -> None:
    model, a, mask = single("varying")
    rows = dense.filtered(model, a, mask)
    torch.testing.assert_close(rows.log_likelihood.sum(), dense.log_prob(model, a, mask))
    last = dense.trajectory(dense.posterior(model, a, mask), len(a))
    torch.testing.assert_close(rows.loc[-1], last.loc[-1])
    torch.testing.assert_close(rows.cov[-1], last.cov[-1])


def test_textbook_smoother_agrees() -> None:
    model, a, _ = single("constant")
    mask = torch.tensor([True, False, True, True])
    constant = [*model[:2], *(p[0] for p in model[2:])]
    answer = textbook.smooth(tuple(p.numpy() for p in constant), a.numpy(), mask.numpy())
    moments = dense.trajectory(dense.posterior(model, a, mask), len(a))
    np.testing.assert_allclose(answer.loc, moments.loc, atol=1e-12)
    np.testing.assert_allclose(answer.cov, moments.cov, atol=1e-12)
    assert answer.log_prob == pytest.approx(dense.log_prob(model, a, mask).item(), abs=1e-12)


def test_noise_tape_reads_the_map_and_refuses_what_it_does_not_know() -> None:
    matrix = torch.tensor([[1.0, 2.0], [0.0, 3.0]], dtype=torch.float64)
    offset, read = affine_map(lambda: matrix @ torch.empty(2, dtype=torch.float64).normal_() + 5)
    torch.testing.assert_close(read, matrix)
    torch.testing.assert_close(offset, torch.full((2,), 5.0, dtype=torch.float64))
    with pytest.raises(NotImplementedError):
        noise_count(lambda: torch.rand(3))
