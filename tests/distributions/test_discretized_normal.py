"""The normal distribution of data that come in steps."""

from __future__ import annotations

import math

import pyro.distributions as dist
import pytest
import torch
from scipy.special import log_ndtr, logsumexp
from torch import Tensor

from pyro_seq.distributions import DiscretizedNormal, window_log_density
from pyro_seq.testing import check_distribution

LOC = torch.tensor([0.3, -2.0, 0.0])
SCALE = torch.tensor([0.5, 1.0, 3.0])
WIDTH = 0.25


def grid(low: int = -200, high: int = 200) -> Tensor:
    return WIDTH * torch.arange(low, high + 1, dtype=torch.float64)[:, None]


@pytest.mark.parametrize("window", ["centred", "right"])
def test_contracts(window: str) -> None:
    check_distribution(
        lambda loc, scale: DiscretizedNormal(loc, scale, WIDTH, window=window), (LOC, SCALE)
    )


@pytest.mark.parametrize(("window", "start"), [("centred", -0.5), ("right", 0.0)])
def test_probability_is_that_of_the_window(window: str, start: float) -> None:
    value, loc, scale = grid(-8, 8), LOC.double(), SCALE.double()
    lower = (value + start * WIDTH - loc) / scale
    upper = lower + WIDTH / scale
    difference = [log_ndtr(upper.numpy()), log_ndtr(lower.numpy())]
    wanted = logsumexp(difference, axis=0, b=[[[1.0]], [[-1.0]]])
    came = DiscretizedNormal(loc, scale, WIDTH, window=window).log_prob(value)
    torch.testing.assert_close(came, torch.tensor(wanted), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("window", ["centred", "right"])
def test_probabilities_of_the_grid_add_up_to_one(window: str) -> None:
    made = DiscretizedNormal(LOC.double(), SCALE.double(), WIDTH, window=window)
    total = made.log_prob(grid()).logsumexp(0)
    torch.testing.assert_close(total, torch.zeros_like(total), rtol=0.0, atol=1e-12)


def test_tiny_windows_have_the_density() -> None:
    value = torch.linspace(-20, 20, 41)[:, None]
    normal = dist.Normal(LOC, SCALE)
    made = DiscretizedNormal(LOC, SCALE, 1e-7)
    density = window_log_density(made.log_prob(value), 1e-7)
    torch.testing.assert_close(density, normal.log_prob(value), rtol=2e-6, atol=2e-6)


def test_bounds_of_frames_change_units() -> None:
    """One step of 16 bit speech with the width of Marino et al.: 1,024 nats are -237.9."""
    bound = window_log_density(torch.tensor(-1024.0), 0.0018190742, numbers=200)
    assert abs(float(bound) - 237.9) < 0.05


@pytest.mark.parametrize("sigmas", [1.5, 8.0, 20.0, 40.0])
def test_single_precision_keeps_values_and_gradients_in_the_tails(sigmas: float) -> None:
    results = []
    for dtype in (torch.float32, torch.float64):
        loc, scale, width, value = (
            torch.tensor([number], dtype=dtype, requires_grad=True)
            for number in (0.5, 0.25, 2.0**-8, 0.5 + 0.25 * sigmas)
        )
        made = DiscretizedNormal(loc, scale, width).log_prob(value)
        gradients = torch.autograd.grad(made, (loc, scale, width, value))
        results.append(torch.cat([made, *gradients]).double())
    torch.testing.assert_close(*results, rtol=5e-6, atol=0.0)


@pytest.mark.parametrize("window", ["centred", "right"])
def test_samples_have_the_probabilities(window: str) -> None:
    made = DiscretizedNormal(LOC, SCALE, 1.0, window=window)
    draws = made.sample(torch.Size((20_000,)))
    assert torch.equal(draws, draws.round())
    values = torch.arange(-3.0, 4.0)[:, None]
    came = (draws == values[:, None]).double().mean(1)
    wanted = made.log_prob(values).double().exp()
    error = (wanted * (1 - wanted) / len(draws)).sqrt()
    assert ((came - wanted).abs() < 5 * error + 1e-9).all()


@pytest.mark.parametrize("window", ["centred", "right"])
def test_moments_are_those_of_the_rounded_numbers(window: str) -> None:
    made = DiscretizedNormal(LOC.double(), SCALE.double(), WIDTH, window=window)
    weights = made.log_prob(grid()).exp()
    mean = (weights * grid()).sum(0)
    torch.testing.assert_close(made.mean, mean, rtol=0.0, atol=1e-9)
    variance = (weights * (grid() - mean) ** 2).sum(0)
    torch.testing.assert_close(made.variance, variance, rtol=1e-9, atol=0.0)


def test_floor_is_the_published_formula_and_improper() -> None:
    loc, scale, value = LOC.double(), SCALE.double(), grid(-40, 40)
    made = DiscretizedNormal(loc, scale, WIDTH, window="right", floor=1e-6)
    normal = dist.Normal(loc, scale)
    wanted = torch.log(normal.cdf(value + WIDTH) - normal.cdf(value) + 1e-6)
    torch.testing.assert_close(made.log_prob(value), wanted, rtol=1e-9, atol=1e-9)
    excess = made.log_prob(grid()).exp().sum(0) - 1
    torch.testing.assert_close(excess, torch.full_like(excess, 401e-6), rtol=1e-6, atol=0.0)
    far = made.log_prob(loc + 100 * scale)
    torch.testing.assert_close(far, torch.full_like(far, math.log(1e-6)))
    assert made.expand((2, 3)).floor == 1e-6


def test_half_precision_parameters_do_not_round_the_width() -> None:
    loc, scale = torch.tensor([0.5, 0.25]).bfloat16(), torch.tensor([1.0, 2.0]).bfloat16()
    made = DiscretizedNormal(loc, scale, 0.0018190742)
    wanted = DiscretizedNormal(loc.float(), scale.float(), 0.0018190742)
    assert made.log_prob(torch.zeros(2)).dtype == torch.float32
    assert torch.equal(made.log_prob(torch.zeros(2)), wanted.log_prob(torch.zeros(2)))


def test_widths_may_differ() -> None:
    width = torch.tensor([0.1, 0.2, 0.4])
    made = DiscretizedNormal(0.0, 1.0, width)
    assert made.batch_shape == (3,)
    for number, one in enumerate(width):
        alone = DiscretizedNormal(0.0, 1.0, one).log_prob(torch.tensor(1.0))
        assert made.log_prob(torch.ones(3))[number] == alone


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"window": "left"}, "window: expected 'centred' or 'right', got 'left'"),
        ({"floor": -1e-6}, "floor: expected a number that is not negative, got -1e-06"),
        ({"width": 0.0}, "width"),
        ({"scale": -1.0}, "scale"),
    ],
)
def test_errors_name_the_argument(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DiscretizedNormal(**{"loc": LOC, "scale": SCALE, "width": WIDTH} | options)
