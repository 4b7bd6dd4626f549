"""The mixture over groups against a sum over all assignments of pixels to groups."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

from pyro_seq.distributions import GroupMixture
from pyro_seq.testing import DISTRIBUTION_CONTRACTS, DistributionCase
from pyro_seq.testing.contracts import run_contracts

BATCH, GROUPS, CHANNELS, SPACE = 2, 3, 2, (2, 1)


def parts(channels: int = CHANNELS) -> tuple[Tensor, Tensor]:
    """Shares, as logarithms, and what the components have as a parameter, in float64."""
    shares = torch.randn(BATCH, GROUPS, 1, *SPACE).double()
    return shares.log_softmax(1), torch.randn(BATCH, GROUPS, channels, *SPACE).double()


def gaussian(values: Tensor) -> Any:  # noqa: ANN401
    return dist.Normal(values, 0.7)


def binary(values: Tensor) -> Any:  # noqa: ANN401
    return dist.Bernoulli(logits=values)


def brute_force(log_m: Tensor, components: Any, x: Tensor) -> Tensor:  # noqa: ANN401
    """Log density of each assignment and the frame, `(batch, assignments)`."""
    shares = log_m.flatten(3)[:, :, 0]  # (batch, groups, pixels)
    pixels = components.log_prob(x.unsqueeze(1)).sum(2).flatten(2)
    assignments = itertools.product(range(GROUPS), repeat=shares.shape[-1])
    each = [
        sum((shares + pixels)[:, group, pixel] for pixel, group in enumerate(groups))
        for groups in assignments
    ]
    return torch.stack([torch.as_tensor(one) for one in each], 1)


@pytest.mark.parametrize("kind", [gaussian, binary])
def test_the_density_is_a_sum_over_all_assignments(kind: Callable[[Tensor], Any]) -> None:
    log_m, values = parts()
    mixture = GroupMixture(log_m, kind(values))
    x = mixture.sample()
    expected = brute_force(log_m, kind(values), x).logsumexp(1)
    torch.testing.assert_close(mixture.log_prob(x), expected, rtol=1e-12, atol=1e-12)


def test_responsibilities_are_those_of_bayes_rule() -> None:
    log_m, values = parts()
    mixture = GroupMixture(log_m, gaussian(values))
    x = mixture.sample()
    weights = brute_force(log_m, gaussian(values), x).softmax(1)
    groups = torch.tensor([*itertools.product(range(GROUPS), repeat=SPACE[0] * SPACE[1])])
    here = torch.nn.functional.one_hot(groups, GROUPS).double()  # (assignments, pixels, groups)
    expected = torch.einsum("ba,apk->bkp", weights, here)
    found = mixture.responsibilities(x)
    torch.testing.assert_close(found[:, :, 0].flatten(2), expected)
    torch.testing.assert_close(found.sum(1), torch.ones_like(found[:, 0]))


@pytest.mark.parametrize("kind", [gaussian, binary])
def test_one_channel_is_mixture_same_family(kind: Callable[[Tensor], Any]) -> None:
    log_m, values = parts(channels=1)
    mixture = GroupMixture(log_m, kind(values))
    inner = kind(values.movedim(1, -1))
    pyros = dist.MixtureSameFamily(dist.Categorical(logits=log_m.movedim(1, -1)), inner)
    x = mixture.sample((4,))
    torch.testing.assert_close(mixture.log_prob(x), pyros.to_event(3).log_prob(x))
    torch.testing.assert_close(mixture.mean, pyros.mean)
    torch.testing.assert_close(mixture.variance, pyros.variance)


def test_groups_can_change_places() -> None:
    log_m, values = parts()
    order = torch.tensor([2, 0, 1])
    mixture = GroupMixture(log_m, gaussian(values))
    other = GroupMixture(log_m[:, order], gaussian(values[:, order]))
    x = mixture.sample()
    torch.testing.assert_close(other.log_prob(x), mixture.log_prob(x))
    torch.testing.assert_close(other.responsibilities(x), mixture.responsibilities(x)[:, order])


@pytest.mark.parametrize("contract", DISTRIBUTION_CONTRACTS, ids=lambda c: c.__name__)
def test_contracts(contract: Callable[[DistributionCase], None]) -> None:
    def make(shares: Tensor, values: Tensor) -> GroupMixture:
        return GroupMixture(shares.log_softmax(1), gaussian(values))

    case = DistributionCase(make, parts())
    run_contracts([contract], case, "The mixture")


def test_a_frame_may_have_one_axis() -> None:
    log_m, values = torch.randn(3, 1, 5).log_softmax(0), torch.randn(3, 2, 5)
    mixture = GroupMixture(log_m, gaussian(values), frame_dims=2)
    assert mixture.batch_shape == () and mixture.sample().shape == (2, 5)


def test_what_does_not_fit_is_refused() -> None:
    log_m, values = parts()
    with pytest.raises(ValueError, match=r"log_m must be .*\(2, 3, 1, 2, 1\).*got shape"):
        GroupMixture(log_m.squeeze(2), gaussian(values))
    with pytest.raises(ValueError, match=r"the event \(1,\)"):
        GroupMixture(log_m[..., 0], gaussian(values).to_event(1))
