"""What lies under a False mask changes nothing."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tests.distributions.setting import ALGORITHMS, assert_same, library_answers, make_setting
from tests.ops.cases import hide

FILLS = (float("nan"), float("inf"), -float("inf"), 1e30)


def filled(layout: str, mask: str, fill: float, algorithm: str) -> tuple[dict, dict, Tensor]:
    """Answers, gradients of their sum, and the gradient of the raw observations."""
    setting = make_setting(layout, mask)
    raw = hide(setting.leaves["a"], setting.mask, fill).detach().requires_grad_()
    leaves = {**setting.leaves, "a": raw}
    d, z = setting.distribution(algorithm), setting.z
    posterior, rows = d.posterior(raw), d.filter(raw)
    torch.manual_seed(0)
    answers = {
        "log_prob": d.log_prob(raw),
        "sample": posterior.rsample(),
        "mean": posterior.mean,
        "cov": posterior.covariance,
        "cross": posterior.cross_covariance,
        "log_joint": d.log_joint(z, raw),
        "log_prob of z": posterior.log_prob(z),
        "log_likelihood": rows.log_likelihood,
        "filtered": rows.loc,
        "prediction": d.observe(rows.predicted_loc, rows.predicted_cov)[0],
    }
    total = sum(value.sum() for value in answers.values())
    found = torch.autograd.grad(total, list(leaves.values()))
    return answers, dict(zip(leaves, found, strict=True)), setting.mask


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize(
    ("layout", "mask"), [("varying", "coordinates"), ("kvae", "frames"), ("two_steps", "nothing")]
)
def test_fill_values_reach_no_value_and_no_gradient(
    layout: str, mask: str, algorithm: str
) -> None:
    answers, found, where = filled(layout, mask, 0.0, algorithm)
    for fill in FILLS:
        other_answers, other_found, _ = filled(layout, mask, fill, algorithm)
        assert_same(other_answers, answers, tolerance=0.0)
        assert_same(other_found, found, tolerance=0.0)
    hidden = ~(where if where.dim() == found["a"].dim() else where[..., None])
    assert (found["a"].masked_select(hidden) == 0).all()
    assert all(g.isfinite().all() for g in found.values())


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_frame_mask_is_a_coordinate_mask_of_whole_rows(algorithm: str) -> None:
    setting = make_setting("more_observed", "frames")
    rows = setting.mask[..., None].expand_as(setting.a)
    by_frame = library_answers(setting, algorithm)
    by_coordinate = library_answers(setting._replace(mask=rows), algorithm)
    assert_same(by_coordinate, by_frame, tolerance=1e-12)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_padding_a_sequence_changes_nothing(algorithm: str) -> None:
    setting = make_setting("constant")
    padded = torch.cat([setting.a, torch.full((3, 2), float("nan"))])
    longer = setting._replace(mask=torch.arange(7) < 4, time=7)
    d = longer.distribution(algorithm)
    torch.testing.assert_close(d.log_prob(padded), setting.distribution().log_prob(setting.a))
    right = setting.distribution(algorithm).posterior(setting.a)
    torch.testing.assert_close(d.posterior(padded).mean[:4], right.mean)
    torch.testing.assert_close(d.posterior(padded).covariance[:4], right.covariance)


@pytest.mark.parametrize("answer", ["log_prob", "posterior", "filter"])
def test_nan_in_an_observed_frame_is_an_error(answer: str) -> None:
    setting = make_setting("varying", "frames")
    a = setting.a.detach().clone()
    observed = setting.mask.nonzero()[0]
    a[tuple(observed)] = float("nan")
    with pytest.raises(ValueError, match=r"(?i)nan|finite|support|real"):
        getattr(setting.distribution(), answer)(a)
