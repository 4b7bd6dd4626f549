from __future__ import annotations

import pytest
import torch
from torch import Tensor

from pyro_seq.distributions import LinearGaussianSSM
from pyro_seq.evaluation import forecast, impute
from pyro_seq.guides import KalmanGuide
from pyro_seq.models import KVAE
from pyro_seq.ops import kalman
from tests.evaluation.pairs import FactorGuide, FactorModel, kvae_batch, kvae_pair


def ssm(model: KVAE, time: int, **options: object) -> LinearGaussianSSM:
    """The linear-Gaussian model of a KVAE with static weights, in float64."""
    dynamics = model.dynamics
    weights = dynamics.network.logits.softmax(-1).double()
    return LinearGaussianSSM(
        torch.zeros(dynamics.state, dtype=torch.float64),
        dynamics.noise()[0],
        (weights[:, None, None] * dynamics.transition.double()).sum(0, keepdim=True),
        dynamics.noise()[1][None],
        (weights[:, None, None] * dynamics.emission.double()).sum(0, keepdim=True),
        dynamics.noise()[2][None],
        time=time,
        **options,
    )


def lively_pair() -> tuple[KVAE, KalmanGuide]:
    model, guide = kvae_pair(
        "static", dynamics_options={"start": "local_linear_trend", "jitter": 0.1}
    )
    guide.encoder.max_var = 0.3
    return model, guide


@pytest.mark.parametrize("weights", ["lstm", "mlp", "static"])
@pytest.mark.parametrize("masked", [False, True])
def test_mean_path_is_imputation_of_what_follows(weights: str, masked: bool) -> None:
    _, guide = kvae_pair(weights)
    x, mask, _ = kvae_batch()
    seen = torch.cat([mask if masked else torch.ones_like(mask), torch.zeros(5, 3).bool()], 1)
    longer = torch.cat([x, torch.full((5, 3, 1, 4, 4), torch.nan)], 1)
    expected = impute(guide, longer, seen, how="filter")[:, 8:]
    done = forecast(guide, x, 3, mask if masked else None)
    assert done.a.shape == (5, 3, 2)
    torch.testing.assert_close(done.frames, expected)
    torch.testing.assert_close(forecast(guide, x, 3, mask if masked else None, chunk=2), done)


def test_draws_have_the_moments_of_the_exact_forecast() -> None:
    """Linear dynamics: mean and covariance over all future steps jointly are known."""
    model, guide = lively_pair()
    x, mask, _ = kvae_batch(2)
    mask[0, -1] = False
    draws = forecast(guide, x, 3, mask, samples=6000, seed=0, chunk=12_000).a.double()
    assert draws.shape == (6000, 2, 3, 2)
    loc, cov = exact_moments(model, guide, x, mask, 3)
    flat = draws.flatten(2)
    error = (flat.mean(0) - loc) / cov.diagonal(dim1=-2, dim2=-1).sqrt()
    assert float(error.abs().max()) < 5 / 6000**0.5
    for i in range(2):
        scale = cov[i].diagonal().sqrt()
        difference = (flat[:, i].mT.cov() - cov[i]) / (scale[:, None] * scale)
        assert float(difference.abs().max()) < 0.08
        assert float((cov[i] / (scale[:, None] * scale))[0, 4]) > 0.3  # steps are correlated


@torch.no_grad()
def exact_moments(
    model: KVAE, guide: KalmanGuide, x: Tensor, mask: Tensor, steps: int
) -> tuple[Tensor, Tensor]:
    """Moments of all future codes, `(batch, steps * obs)`, codes of the context uncertain.

    The forecast given codes is Gaussian with a mean linear in them; q of the codes is Gaussian.
    """
    code, scale = (t.double() for t in guide.encoder(x))
    time, obs = code.shape[1:]
    moments = []
    for row, spread, shown in zip(code, scale, mask, strict=True):
        seen = torch.cat([shown, shown.new_zeros(steps)])
        whole = ssm(model, time + steps, mask=seen)

        def mean_of(
            codes: Tensor, whole: LinearGaussianSSM = whole, empty: Tensor = code
        ) -> Tensor:
            padded = torch.cat([codes, empty.new_zeros(steps, obs)])
            return whole.observe(*whole.posterior(padded).smoothed[:2])[0][time:].flatten()

        response = torch.autograd.functional.jacobian(mean_of, row).flatten(1)
        dense = dense_forecast_covariance(whole, seen, time)
        noise = (spread * shown[:, None]).flatten() ** 2
        moments.append((mean_of(row), dense + (response * noise) @ response.mT))
    locs, covs = zip(*moments, strict=True)
    return torch.stack(locs), torch.stack(covs)


def dense_forecast_covariance(whole: LinearGaussianSSM, seen: Tensor, time: int) -> Tensor:
    """Cov(a_future | observed a) by conditioning the dense joint Gaussian of all codes."""
    model: kalman.LinearGaussian = whole.model
    steps, obs = whole.event_shape
    covs = [model.initial_cov]
    transition, emission = model.transition[0], model.emission[0]
    for _ in range(steps - 1):
        covs.append(transition @ covs[-1] @ transition.mT + model.transition_cov[0])
    joint = torch.zeros(steps, obs, steps, obs, dtype=torch.float64)
    for s in range(steps):
        power = torch.eye(len(transition), dtype=torch.float64)
        for t in range(s, steps):
            block = emission @ power @ covs[s] @ emission.mT
            joint[t, :, s], joint[s, :, t] = block, block.mT
            power = transition @ power
        joint[s, :, s] += model.emission_cov[0]
    flat = joint.flatten(2).flatten(0, 1)
    known = seen.repeat_interleave(obs)
    future = torch.arange(steps).repeat_interleave(obs) >= time
    gain = torch.linalg.solve(flat[known][:, known], flat[known][:, future])
    return flat[future][:, future] - flat[future][:, known] @ gain


@pytest.mark.parametrize("weights", ["lstm", "mlp"])
def test_draws_follow_the_seed_and_the_mean_path_starts_right(weights: str) -> None:
    _, guide = kvae_pair(weights)
    x, mask, _ = kvae_batch()
    one, two = (forecast(guide, x, 4, mask, samples=3, seed=7) for _ in range(2))
    assert torch.equal(one.a, two.a) and one.frames.shape == (3, 5, 4, 1, 4, 4)
    assert not torch.equal(one.a[0], one.a[1])
    hidden = torch.where(mask[..., None, None, None], x, torch.nan)
    assert torch.equal(forecast(guide, hidden, 4, mask, samples=3, seed=7).a, one.a)


def test_controls_steer_the_future() -> None:
    _, guide = kvae_pair("lstm", controls=1)
    x, mask, _ = kvae_batch()
    controls = torch.zeros(5, 11, 1)
    other = controls.clone()
    other[:, 9:] = 30.0
    for samples in (None, 2):
        now, then = (
            forecast(guide, x, 3, mask, u, samples=samples, seed=0) for u in (controls, other)
        )
        assert torch.equal(now.a[..., :1, :], then.a[..., :1, :])
        assert not torch.allclose(now.a[..., 1:, :], then.a[..., 1:, :])
    for samples in (None, 2):
        with pytest.raises(ValueError, match=r"\(5, 11, control\); got shape \(5, 8, 1\)"):
            forecast(guide, x, 3, mask, controls[:, :8], samples=samples)
        with pytest.raises(ValueError, match=r"\(5, 11, control\); got None"):
            forecast(guide, x, 3, mask, samples=samples)
        with pytest.raises(ValueError, match=r"= \(5, 8, 1\); got \(5, 8, 2\)"):
            forecast(guide, x, 3, mask, controls.repeat(1, 1, 2), samples=samples)


def test_errors_say_what_is_wrong() -> None:
    _, guide = kvae_pair()
    x = kvae_batch().x
    with pytest.raises(ValueError, match="steps and samples must be at least 1"):
        forecast(guide, x, 0)
    for samples in (None, 2):
        with pytest.raises(ValueError, match=r"x must be .* got shape \(5, 8, 16\)"):
            forecast(guide, x.flatten(2), 3, samples=samples)
        with pytest.raises(ValueError, match=r"mask must be .* \(5, 8\); got .* \(5, 7\)"):
            forecast(guide, x, 3, torch.ones(5, 7, dtype=torch.bool), samples=samples)
    with pytest.raises(TypeError, match="FactorGuide has not"):
        forecast(FactorGuide(FactorModel()), x, 2)
