from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

from pyro_seq.evaluation.draws import Band
from pyro_seq.evaluation.step_plots import (
    plot_filtered_states,
    plot_inference,
    plot_iterations,
    plot_piano_rolls,
    reconstructions,
)
from pyro_seq.guides import AVF, NeuralFilter, VariationalEM
from pyro_seq.models.step_model import StepModel

plt = pytest.importorskip("matplotlib.pyplot")


@pytest.fixture(autouse=True)
def closed_figures() -> Iterator[None]:
    yield
    plt.close("all")


class Picture(StepModel):
    """Every pixel is seen through noise, and moves by steps that are hardly random."""

    class State(NamedTuple):
        z: Tensor

    def __init__(self, step: float) -> None:
        super().__init__()
        self.size = step

    def initial_state(self, batch_shape: torch.Size) -> State:
        return self.State(torch.zeros(*batch_shape, 1, 2, 3, dtype=torch.float64))

    def step(self, state: State, x_t: Tensor | None, u_t: Tensor | None = None) -> State:
        z = pyro.sample("z", dist.Normal(0.5 * state.z + 1, self.size).to_event(3))
        pyro.sample("x", dist.Normal(z, 0.1).to_event(3), obs=x_t)
        return self.State(z)


def test_states_have_a_line_a_band_the_truth_and_shaded_gaps() -> None:
    mean = torch.randn(2, 6, 3)
    band = Band(mean, mean - 1, mean + 2)
    mask = torch.tensor([[True] * 6, [True, False, False, True, True, False]])
    truth = torch.randn(2, 6, 3)
    axes = plot_filtered_states({"avf": band}, truth, mask, sequence=1, component=2, name="angle")
    drawn, true = axes.get_lines()
    np.testing.assert_allclose(drawn.get_ydata(), mean[1, :, 2])
    np.testing.assert_allclose(true.get_ydata(), truth[1, :, 2])
    np.testing.assert_array_equal(drawn.get_xdata(), range(1, 7))
    corners = axes.collections[0].get_paths()[0].vertices
    assert corners[:, 1].max() == pytest.approx(float(mean[1, :, 2].max() + 2))
    assert corners[:, 1].min() == pytest.approx(float(mean[1, :, 2].min() - 1))
    spans = sorted(patch.get_x() for patch in axes.patches)
    assert spans == [1.5, 2.5, 5.5] and axes.get_ylabel() == "angle"
    with pytest.raises(ValueError, match=r"bands\['a'\] must have a mean .* got shape \(6, 3\)"):
        plot_filtered_states({"a": Band(*(part[0] for part in band))})


def test_iterations_are_curves_in_order_and_levels() -> None:
    axes = plot_iterations({"avf": {3: 1.0, 1: 2.0, 2: 1.5}}, {"baseline": 1.8})
    curve, level = axes.get_lines()
    assert list(curve.get_xdata()) == [1, 2, 3] and list(curve.get_ydata()) == [2.0, 1.5, 1.0]
    assert list(level.get_ydata()) == [1.8, 1.8]
    assert all(float(tick).is_integer() for tick in axes.get_xticks())


def test_piano_rolls_stand_one_above_the_other() -> None:
    rolls = {"song": torch.rand(7, 5), "drawn": torch.rand(9, 5)}
    axes = plot_piano_rolls(rolls)
    below, above = axes.get_images()
    np.testing.assert_array_equal(above.get_array(), rolls["song"].T.numpy())
    np.testing.assert_array_equal(below.get_array(), rolls["drawn"].T.numpy())
    assert above.get_extent()[2] > below.get_extent()[3]
    ticks = zip(axes.get_yticklabels(), axes.get_yticks(), strict=True)
    heights = {label.get_text(): height for label, height in ticks}
    assert heights["song"] > heights["drawn"]
    with pytest.raises(ValueError, match=r"rolls\['flat'\] must be .* got shape \(7,\)"):
        plot_piano_rolls({"flat": torch.rand(7)})


def test_reconstructions_approach_the_frame_and_predictions_are_the_prior() -> None:
    """Frames 3 away from what is predicted: each step of descent moves q by about its rate."""
    model = Picture(step=1.0)
    guide = VariationalEM(model, 30, rate=0.3, samples=2)
    x = torch.full((2, 4, 1, 2, 3), 3.0, dtype=torch.float64)
    means = reconstructions(guide, x, [4, 10, 30], seed=1)
    assert list(means) == ["prediction", *(f"{count} iterations" for count in (4, 10, 30))]
    errors = [float((mean - x).square().mean()) for mean in means.values()]
    assert errors[0] > errors[1] > errors[2] > errors[3]
    assert errors[3] < 0.05 and guide.iterations == 30
    narrow = Picture(step=1e-5)
    means = reconstructions(NeuralFilter(narrow, hidden=[], residual=True).double(), x)
    assert list(means) == ["prediction", "reconstruction"]
    torch.testing.assert_close(
        means["prediction"][:, 0], torch.ones_like(x[:, 0]), atol=1e-3, rtol=0
    )
    with pytest.raises(ValueError, match="iterations are for AVF and VariationalEM; got NeuralF"):
        reconstructions(NeuralFilter(model, hidden=[4]), x, [1])


def test_inference_is_shown_frame_by_frame() -> None:
    guide = AVF(Picture(step=1.0), 2, hidden=[8]).double()
    x = torch.rand(3, 4, 1, 2, 3, dtype=torch.float64)
    mask = torch.ones(3, 4, dtype=torch.bool)
    mask[1, 2] = False
    before = torch.get_rng_state()
    axes = plot_inference(guide, x, mask, iterations=[1, 2], sequence=1)
    assert torch.equal(torch.get_rng_state(), before)
    labels = [label.get_text() for label in axes.get_yticklabels()]
    assert labels == ["frame", "prediction", "1 iteration", "2 iterations"]
    assert len(axes.get_images()) == 4 * 4 and len(axes.patches) == 4
    shown = [image.get_array() for image in axes.get_images()[:4]]
    np.testing.assert_allclose(np.stack(shown), x[1, :, 0])
