"""Predict and update one frame at a time: the same numbers as the whole sequence at once."""

from __future__ import annotations

import pytest
import torch

from pyro_seq.ops import kalman
from tests.ops import dense
from tests.ops.cases import LAYOUTS, build_model, hide, random_leaves, random_mask


def online(model: kalman.LinearGaussian, a: torch.Tensor, mask: torch.Tensor | None) -> tuple:
    """Run the two steps in a loop that remembers one state."""
    loc, cov, rows = model.initial_loc, model.initial_cov, []
    for t in range(a.shape[-2]):
        now = model.at(t)
        if t > 0:
            loc, cov = kalman.predict(loc, cov, now.transition, now.offset, now.transition_cov)
        seen = None if mask is None else mask[..., t, :]
        loc, cov, nats = kalman.update(
            loc, cov, now.emission, now.emission_cov, a[..., t, :], seen
        )
        rows.append((loc, cov, nats))
    return tuple(zip(*rows, strict=True))


@pytest.mark.parametrize("mask_name", ["none", "coordinates", "nothing"])
@pytest.mark.parametrize("layout_name", ["varying", "kvae", "scalar", "one_step"])
def test_steps_equal_the_dense_filter(layout_name: str, mask_name: str) -> None:
    layout = LAYOUTS[layout_name]
    leaves, mask = random_leaves(layout), random_mask(layout, mask_name)
    if mask is not None and mask.dim() < leaves["a"].dim():
        mask = mask[..., None].expand(leaves["a"].shape)
    model = dense.expand(build_model(leaves), torch.Size(layout.batch))
    with torch.no_grad():
        model = kalman.LinearGaussian(*model)
        loc, cov, nats = online(model, hide(leaves["a"], mask), mask)
        right = dense.each_sequence(
            dense.filtered, model, torch.Size(layout.batch), leaves["a"], mask
        )
        torch.testing.assert_close(torch.stack(loc, -2), right.loc, rtol=0, atol=1e-8)
        torch.testing.assert_close(torch.stack(cov, -3), right.cov, rtol=0, atol=1e-8)
        torch.testing.assert_close(torch.stack(nats, -1), right.log_likelihood, rtol=0, atol=1e-8)


def test_unknown_algorithm() -> None:
    layout = LAYOUTS["constant"]
    leaves = random_leaves(layout)
    model = kalman.LinearGaussian(*build_model(leaves))
    with pytest.raises(ValueError, match="sequential.*nonsense"):
        kalman.condition(model, leaves["a"], None, "nonsense")
