"""What follows a sequence: the forecast equals the dense joint over past and future."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from pyro_seq.distributions import LinearGaussianSSM
from tests.distributions.setting import ALGORITHMS, Setting, make_setting
from tests.ops import dense
from tests.ops.dense import Model
from tests.ops.noise import affine_map

PAST = 3


def cut(setting: Setting, steps: slice) -> dict[str, Tensor]:
    """The constructor's arguments for a part of the time."""
    parameters = setting.model._asdict()
    timed = list(parameters)[2:]
    place = len(setting.batch_shape)
    for name in timed:
        whole = parameters[name]
        if whole.shape[place] > 1:
            parameters[name] = whole[(slice(None),) * place + (steps,)]
    return parameters


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize(
    ("layout", "mask"), [("varying", "none"), ("varying", "coordinates"), ("constant", "frames")]
)
def test_forecast_equals_the_dense_conditional(layout: str, mask: str, algorithm: str) -> None:
    setting = make_setting(layout, mask)
    horizon = setting.time - PAST
    batch_dims = len(setting.batch_shape)
    past = (slice(None),) * batch_dims + (slice(PAST),)
    future = (slice(None),) * batch_dims + (slice(PAST, None),)
    keep = None if setting.mask is None else setting.mask[past]
    d, later = (
        LinearGaussianSSM(**cut(setting, steps), time=time, mask=where, algorithm=algorithm)
        for steps, time, where in (
            (slice(PAST), PAST, keep),
            (slice(PAST, None), horizon, None),
        )
    )
    forecast = d.forecast(setting.a[past], later)

    def moments(model: Model, a: Tensor, mask: Tensor | None) -> dense.Moments:
        return dense.forecast(model, a, mask, horizon)[1]

    right = setting.each(moments, setting.leaves["a"][past], keep)
    offset, matrix = affine_map(forecast.rsample)
    blocks = right.cov.reshape(-1, *right.cov.shape[-2:])
    torch.testing.assert_close(offset, right.loc.flatten(), rtol=0, atol=1e-8)
    torch.testing.assert_close(matrix @ matrix.T, torch.block_diag(*blocks), rtol=0, atol=1e-8)

    value = setting.leaves["a"][future]
    density = setting.each(
        lambda _, a, loc, cov: dense.gaussian_log_density(a.flatten(), loc, cov), value, *right
    )
    torch.testing.assert_close(forecast.log_prob(value), density, rtol=1e-8, atol=1e-8)


def test_forecasting_further_costs_no_information() -> None:
    """The chain rule: log p(past) + log p(future | past) = log p(both)."""
    setting = make_setting("varying")
    a = setting.a.detach()
    whole = LinearGaussianSSM(**cut(setting, slice(None)))
    first, second = (
        LinearGaussianSSM(**cut(setting, s)) for s in (slice(PAST), slice(PAST, None))
    )
    parts = first.log_prob(a[:, :PAST]) + first.forecast(a[:, :PAST], second).log_prob(a[:, PAST:])
    torch.testing.assert_close(parts, whole.log_prob(a))


def test_variance_is_that_of_samples_of_the_forecast() -> None:
    setting = make_setting("constant")
    model = LinearGaussianSSM(**setting.model._asdict(), time=setting.time)
    forecast = model.forecast(setting.a, LinearGaussianSSM.from_model(model.model, time=2))
    offset, matrix = affine_map(forecast.rsample)
    for got, right in ((forecast.mean, offset), (forecast.variance, matrix.square().sum(1))):
        torch.testing.assert_close(got.flatten(), right, rtol=0, atol=1e-8)
    torch.testing.assert_close(forecast.stddev.square(), forecast.variance)


def test_the_future_is_a_model() -> None:
    setting = make_setting("constant")
    model = LinearGaussianSSM(**setting.model._asdict(), time=setting.time)
    with pytest.raises(TypeError, match=r"future must be .* got int.*from_model"):
        model.forecast(setting.a, 3)  # type: ignore[arg-type]
    eye = torch.eye(7).double()
    other = LinearGaussianSSM(eye[0], eye, eye[None], eye[None], eye[None], eye[None], time=2)
    with pytest.raises(ValueError, match="future must have states of [23] coordinates.* got 7"):
        model.forecast(setting.a, other)
