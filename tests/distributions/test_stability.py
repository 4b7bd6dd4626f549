"""Long sequences in float32, matrices that are no covariances, reduced precision around both."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.distributions import kl_divergence

from pyro_seq.distributions import LinearGaussianSSM
from tests.distributions.setting import ALGORITHMS, make_setting
from tests.ops import textbook
from tests.ops.dense import Model

TIME = 1000
SCALES = (1e-4, 1e-2, 1.0, 1e2)


def long_model(dynamics: str, transition_scale: float, emission_scale: float) -> Model:
    """State 4, observation 2, P_1 = 20 I: a constant velocity, or the KVAE's start."""
    eye = torch.eye(4, dtype=torch.float64)
    transition, emission = eye.clone(), eye[:2]
    if dynamics == "velocity":
        transition[0, 2] = transition[1, 3] = 0.2
    else:
        generator = torch.Generator().manual_seed(0)
        emission = 0.05 * torch.randn(2, 4, generator=generator, dtype=torch.float64)
    noises = transition_scale * eye[None], emission_scale * eye[None, :2, :2]
    zero = torch.zeros(1, 4, dtype=torch.float64)
    model = Model(zero[0], 20 * eye, transition[None], zero, noises[0], emission[None], noises[1])
    return Model(*[p.float().double() for p in model])


def simulate(model: Model) -> tuple[Tensor, Tensor]:
    """Observations of the model's own kind, exact in float32, a fifth of them missing."""
    generator = np.random.default_rng(0)
    transition, emission = model.transition[0].numpy(), model.emission[0].numpy()
    scales = [float(c[0, 0, 0]) ** 0.5 for c in (model.transition_cov, model.emission_cov)]
    z, a = 20**0.5 * generator.standard_normal(4), []
    for _ in range(TIME):
        a.append(emission @ z + scales[1] * generator.standard_normal(2))
        z = transition @ z + scales[0] * generator.standard_normal(4)
    rounded = torch.tensor(np.stack(a)).float().double()
    return rounded, torch.tensor(generator.random(TIME) < 0.8)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_float32_follows_float64_over_a_thousand_steps(algorithm: str) -> None:
    """All scales of Q and R are one batch; errors in units of the exact posterior spread."""
    kinds = itertools.product(("velocity", "kvae"), SCALES, SCALES)
    models = [long_model(*kind) for kind in kinds]
    a, mask = map(torch.stack, zip(*map(simulate, models), strict=True))
    exact = [
        textbook.smooth((*(p.numpy() for p in m[:2]), *(p[0].numpy() for p in m[2:])), *case)
        for m, *case in zip(models, a.numpy(), mask.numpy(), strict=True)
    ]
    stacked = [torch.stack(p).float().requires_grad_() for p in zip(*models, strict=True)]
    d = LinearGaussianSSM(**Model(*stacked)._asdict(), time=TIME, mask=mask, algorithm=algorithm)
    posterior = d.posterior(a.float())
    assert posterior.mean.dtype == torch.float32
    log_prob = d.log_prob(a.float())
    torch.manual_seed(0)
    sample = posterior.rsample()
    joint = d.log_joint(sample, a.float()) - posterior.log_prob(sample)
    (log_prob.sum() + sample.sum()).backward()
    assert all(p.grad.isfinite().all() for p in stacked)

    loc, cov = (torch.tensor(np.stack([getattr(e, k) for e in exact])) for k in ("loc", "cov"))
    spread = cov.diagonal(dim1=-2, dim2=-1).sqrt()
    right = torch.tensor([e.log_prob for e in exact])
    rounding = 1e-6 * loc.abs()
    checks = {
        "log_prob": ((log_prob - right) / (1 + right.abs())).abs().max(),
        "mean": (((posterior.mean - loc).abs() - rounding) / spread).max(),
        "covariance": ((posterior.covariance - cov) / spread[..., None] / spread[..., None, :])
        .abs()
        .max(),
        "joint estimate": ((joint - right) / (1 + right.abs())).abs().max(),
        "sample": (((sample - loc).abs() - rounding) / spread).max() / 6e3,
    }
    assert all(value < 1e-3 for value in checks.values()), checks


def test_kl_in_float32_keeps_its_digits() -> None:
    """Two entropies of ten thousand nats differ by nine."""
    model = long_model("velocity", 1e-4, 1e2)
    a, mask = simulate(model)
    answers = []
    for dtype in (torch.float64, torch.float32):
        q, p = (
            LinearGaussianSSM(
                **m._replace(transition_cov=scale * m.transition_cov)._asdict(),
                time=TIME,
                mask=mask,
            ).posterior(a.to(dtype))
            for m in [Model(*[x.to(dtype) for x in model])]
            for scale in (1.0, 1.125)
        )
        answers.append(kl_divergence(q, p).double())
    torch.testing.assert_close(*answers, rtol=1e-5, atol=0)


BROKEN = {"initial_cov": (1,), "transition_cov": (1, 3), "emission_cov": (1, 2)}


@pytest.mark.parametrize("validate", [True, False])
@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("name", BROKEN)
def test_a_matrix_that_is_no_covariance_is_named(
    name: str, algorithm: str, validate: bool
) -> None:
    """One eigenvalue is slightly negative, so that the sums it enters may still be positive."""
    setting = make_setting("varying")
    index = BROKEN[name]
    model = Model(*[p.detach().clone() for p in setting.model])
    matrix = getattr(model, name)[index]
    values, vectors = torch.linalg.eigh(matrix)
    values[0] = -1e-3
    matrix.copy_(vectors @ values.diag() @ vectors.T)
    step = rf".*step {index[1]}\b" if len(index) > 1 else ""
    with pytest.raises(ValueError, match=f"(?s)^{name}.*not positive definite{step}"):
        LinearGaussianSSM(**model._asdict(), algorithm=algorithm, validate_args=validate).log_prob(
            setting.a.detach()
        )


@pytest.mark.parametrize("name", BROKEN)
def test_a_matrix_that_is_not_symmetric_is_named(name: str) -> None:
    setting = make_setting("varying")
    model = Model(*[p.detach().clone() for p in setting.model])
    getattr(model, name)[..., 0, 1] += 0.1
    with pytest.raises(ValueError, match=f"{name}.*symmetric"):
        LinearGaussianSSM(**model._asdict(), validate_args=True)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_autocast_does_not_reach_the_algebra(algorithm: str) -> None:
    setting = make_setting("varying", "coordinates")
    leaves = {k: v.detach().float().requires_grad_() for k, v in setting.leaves.items()}
    setting = setting._replace(leaves=leaves)
    model, a = Model(*[p.detach().requires_grad_() for p in setting.model]), setting.a.detach()
    results = []
    for enabled in (False, True):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            d = LinearGaussianSSM(
                **model._asdict(), time=5, mask=setting.mask, algorithm=algorithm
            )
            posterior, rows = d.posterior(a), d.filter(a)
            torch.manual_seed(0)
            sample = posterior.rsample()
            prior = d.rsample()
            values = [
                d.log_prob(a),
                sample,
                prior,
                posterior.mean,
                posterior.covariance,
                rows.loc,
                rows.log_likelihood,
                *d.observe(rows.predicted_loc, rows.predicted_cov),
                d.log_joint(sample, a),
                posterior.log_prob(sample),
            ]
            total = sum(v.sum() for v in values)
            results.append(values + list(torch.autograd.grad(total, list(model))))
    for plain, cast in zip(*results, strict=True):
        assert cast.dtype == torch.float32
        torch.testing.assert_close(cast, plain, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_bfloat16_observations_are_taken_in_the_precision_of_the_model(algorithm: str) -> None:
    setting = make_setting("varying")
    model = Model(*[p.detach().float() for p in setting.model])
    d = LinearGaussianSSM(**model._asdict(), time=5, algorithm=algorithm)
    a = setting.a.detach().bfloat16()
    torch.testing.assert_close(d.log_prob(a), d.log_prob(a.float()), rtol=1e-5, atol=1e-5)
