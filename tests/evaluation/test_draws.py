"""Shares of variance of posterior draws against known variances."""

import pytest
import torch

from pyro_seq.evaluation import Draws


def made(samples: int, sequences: int, means: torch.Tensor, noise: torch.Tensor) -> Draws:
    """Draws whose means vary over sequences by `means`, and by `noise` around them."""
    torch.manual_seed(0)
    loc = means * torch.randn(sequences, len(means))
    return Draws({"z": loc + noise * torch.randn(samples, sequences, len(means))}, {})


def test_explained_is_the_share_of_variance_between_sequences() -> None:
    means, noise = torch.tensor([3.0, 1.0, 0.0]), torch.tensor([1.0, 1.0, 2.0])
    share = made(2, 20_000, means, noise).explained("z")
    expected = means.square() / (means.square() + noise.square())
    torch.testing.assert_close(share, expected.double(), rtol=0, atol=0.02)


def test_explained_has_no_bias_of_few_draws() -> None:
    """Draws of a collapsed unit differ between sequences by chance alone."""
    few, many = (made(s, 5_000, torch.ones(1), torch.ones(1)).explained("z") for s in (2, 50))
    torch.testing.assert_close(few, many, rtol=0, atol=0.05)


def test_explained_does_not_depend_on_scale() -> None:
    draws = made(3, 40, torch.ones(4), torch.ones(4))
    scaled = Draws({"z": 1e3 * draws.sites["z"] + 7}, {})
    torch.testing.assert_close(scaled.explained("z"), draws.explained("z"), rtol=1e-4, atol=0)


def test_explained_wants_draws_and_a_name() -> None:
    with pytest.raises(ValueError, match="two draws or more of two sequences or more; got 1 of 5"):
        made(1, 5, torch.ones(2), torch.ones(2)).explained("z")
    with pytest.raises(ValueError, match="name must be one of z; got 'a'"):
        made(2, 5, torch.ones(2), torch.ones(2)).explained("a")
