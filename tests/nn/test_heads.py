"""Heads: the distributions that features stand for."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from pyro_seq.distributions import DiscretizedNormal
from pyro_seq.nn import BernoulliHead, NormalHead, PixelHead, WindowHead, emission_head


@pytest.mark.parametrize("shape", [3, (2, 3), (1, 4, 4)])
@pytest.mark.parametrize(
    ("name", "options"), [("bernoulli", {}), ("normal", {}), ("window", {"width": 0.1})]
)
def test_shapes(name: str, options: dict[str, Any], shape: Any) -> None:  # noqa: ANN401
    event = torch.Size((shape,) if isinstance(shape, int) else shape)
    head = emission_head(name, 5, shape, **options)
    for batch in ((), (4,), (2, 4)):
        made = head(torch.randn(*batch, 5))
        assert (made.batch_shape, made.event_shape) == (batch, event)
        assert made.log_prob(made.sample()).isfinite().all()


def test_normal_is_that_of_the_formula() -> None:
    head = NormalHead(5, 2, log_scales=(-1.0, 0.5)).double()
    features = 10 * torch.randn(7, 5).double()
    weight, bias = head.parameters_of.weight, head.parameters_of.bias
    loc = features @ weight[:2].mT + bias[:2]
    log_scale = features @ weight[2:].mT + bias[2:]
    assert (log_scale > 0.5).any() and (log_scale < -1).any()
    x = torch.randn(7, 2).double()
    scale = log_scale.clip(-1.0, 0.5).exp()
    expected = -((x - loc) ** 2 / (2 * scale**2) + scale.log() + 0.5 * math.log(2 * math.pi))
    torch.testing.assert_close(head(features).log_prob(x), expected.sum(-1))


def test_bernoulli_is_that_of_the_formula() -> None:
    head = BernoulliHead(5, (2, 2)).double()
    features = torch.randn(7, 5).double()
    mean = head.logits(features).sigmoid().reshape(7, 2, 2)
    x = torch.rand(7, 2, 2).round().double()
    expected = torch.where(x == 1, mean, 1 - mean).log().sum((1, 2))
    torch.testing.assert_close(head(features).log_prob(x), expected)
    torch.testing.assert_close(head(features).mean, mean)


def test_window_is_a_probability() -> None:
    """All windows together have mass one, and the normal's parameters are those of its head."""
    head = WindowHead(5, 1, width=0.25).double()
    features = torch.randn(5).double()
    grid = 0.25 * torch.arange(-4000, 4001).double().unsqueeze(-1)
    made = head(features)
    assert made.log_prob(grid).exp().sum().item() == pytest.approx(1.0)
    loc, scale = head.normal.moments(features)
    assert isinstance(made.base_dist, DiscretizedNormal)
    torch.testing.assert_close(made.base_dist.loc, loc)
    torch.testing.assert_close(made.base_dist.scale, scale)


def test_options_reach_the_distribution() -> None:
    head = emission_head("window", 5, 2, width=0.1, window="right", floor=1e-6)
    base = head(torch.randn(3, 5)).base_dist
    assert (base.window, base.floor) == ("right", 1e-6)


@pytest.mark.parametrize("make", [lambda name: emission_head(name, 3, 2), PixelHead])
def test_unknown_emissions_are_refused(make: Any) -> None:  # noqa: ANN401
    with pytest.raises(ValueError, match="emission must be one of bernoulli, normal, window; got"):
        make("poisson")


def test_pixels_are_those_of_the_formula() -> None:
    maps = 8 * torch.randn(4, 2, 6, 3, 3).double()
    x = torch.rand(4, 2, 3, 3, 3).double()
    made = PixelHead("normal")(maps)
    assert (made.batch_shape, made.event_shape) == ((4, 2), (3, 3, 3))
    loc, log_scale = maps[:, :, :3].sigmoid(), maps[:, :, 3:].clip(-5.0, 2.5)
    expected = torch.distributions.Normal(loc, log_scale.exp()).log_prob(x).sum((2, 3, 4))
    torch.testing.assert_close(made.log_prob(x), expected)
    window = PixelHead("window", width=1 / 255)(maps)
    density = window.log_prob(x) + 27 * math.log(255)
    wide = log_scale.exp() > 0.1
    assert wide.any()
    torch.testing.assert_close(density[0, 0], expected[0, 0], rtol=0.1, atol=1.0)
    binary = PixelHead("bernoulli")(maps)
    torch.testing.assert_close(binary.mean, maps.sigmoid())


def test_a_window_needs_a_width_and_nothing_else_has_one() -> None:
    for emission, options in (("window", {}), ("normal", {"width": 0.1})):
        with pytest.raises(ValueError, match="must hold width when it is 'window'"):
            PixelHead(emission, **options)
