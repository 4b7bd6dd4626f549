"""Groups that share pixels: the joint density, the symmetry of groups, and bad input."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from pyro import poutine
from torch import Tensor
from torch.distributions import Bernoulli, Normal

from pyro_seq.models import GroupMixtureModel

FRAME, GROUPS, LATENT, TIME = (1, 2, 2), 2, 3, 2


def drawn(**options: Any) -> GroupMixtureModel:  # noqa: ANN401
    """A model in float64 with no parameter at a special value."""
    options = {"groups": GROUPS, "latent": LATENT, "decoder": [5], **options}
    model = GroupMixtureModel(FRAME, **options).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return model


def pixels(model: GroupMixtureModel, h: Tensor) -> tuple[Tensor, Any]:
    """Shares `(groups, pixels)`, and distributions of them, from the layers of the decoder."""
    said = model.read(model.decoder(h))
    count = math.prod(FRAME)
    z, logits = said[:, :count], said[:, count:]
    if model.log_scale is None:
        return logits.softmax(0), Bernoulli(logits=z)
    return logits.softmax(0), Normal(z, model.log_scale.exp())


@pytest.mark.parametrize("kind", ["bernoulli", "gaussian"])
def test_the_joint_density_is_a_sum_over_all_assignments(kind: str) -> None:
    model = drawn(pixels=kind)
    x = (torch.rand(1, TIME, *FRAME) > 0.5).double()
    trace = poutine.trace(model).get_trace(x)
    trace.compute_log_prob()
    move, loc, scale = model.move, torch.zeros(GROUPS, LATENT).double(), torch.ones(1).double()
    for t in range(TIME):
        h = trace.nodes[f"h_{t + 1}"]["value"][0]
        prior = Normal(loc, scale).log_prob(h).sum()
        torch.testing.assert_close(trace.nodes[f"h_{t + 1}"]["log_prob"], prior[None])
        m, values = pixels(model, h)
        each = m * values.log_prob(x[0, t].flatten()).exp()
        total = sum(
            math.prod(each[group, i] for i, group in enumerate(groups))
            for groups in itertools.product(range(GROUPS), repeat=each.shape[1])
        )
        expected = torch.as_tensor(total).log()[None]
        torch.testing.assert_close(trace.nodes[f"x_{t + 1}"]["log_prob"], expected)
        loc, scale = h @ move.past.weight.mT + move.past.bias, move.log_scale.exp()


def test_groups_can_change_places() -> None:
    model, order = drawn(groups=3), torch.tensor([2, 0, 1])
    h, x = torch.randn(4, 3, LATENT).double(), (torch.rand(4, *FRAME) > 0.5).double()
    one, other = model.emission(h), model.emission(h[:, order])
    torch.testing.assert_close(other.log_prob(x), one.log_prob(x))
    torch.testing.assert_close(other.m, one.m[:, order])


def test_means_begin_at_the_mean_of_the_data() -> None:
    start = GroupMixtureModel(FRAME, mean=0.2).read.bias[: math.prod(FRAME)]
    torch.testing.assert_close(start, torch.full_like(start, math.log(0.2 / 0.8)))
    grey = GroupMixtureModel(FRAME, mean=0.2, pixels="gaussian").read.bias[: math.prod(FRAME)]
    torch.testing.assert_close(grey, torch.full_like(grey, 0.2))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"groups": 0}, "groups must be at least 1; got 0"),
        ({"latent": 0}, "latent must be at least 1; got 0"),
        ({"frame": 12}, r"frame must be \(channels, \*space\), all positive; got 12"),
        ({"frame": (1, 0, 3)}, r"frame must be .*got \(1, 0, 3\)"),
        ({"mean": 1.0}, "mean of binary pixels must be between 0 and 1; got 1.0"),
        ({"pixels": "gaussian", "mean": math.nan}, "mean must be finite; got nan"),
        ({"pixels": "poisson"}, "pixels must be one of bernoulli, gaussian; got 'poisson'"),
        ({"transition": "flow"}, "transition must be one of gated, linear; got 'flow'"),
    ],
)
def test_what_is_out_of_range_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        GroupMixtureModel(**{"frame": FRAME, **options})


def test_binary_frames_must_lie_between_0_and_1() -> None:
    with pytest.raises(ValueError, match="x must.*pixels='gaussian'"):
        drawn()(2 * torch.ones(1, 1, *FRAME).double())
