from __future__ import annotations

import subprocess
import sys
import warnings
from collections.abc import Iterator

import numpy as np
import pytest
import torch

from pyro_seq.evaluation.plots import (
    plot_imputation_curves,
    plot_imputed_frames,
    plot_strips,
    plot_trajectories,
    plot_weights,
)
from tests.evaluation.pairs import kvae_batch, kvae_pair

plt = pytest.importorskip("matplotlib.pyplot")


@pytest.fixture(autouse=True)
def closed_figures() -> Iterator[None]:
    yield
    plt.close("all")


def test_strips_show_every_frame_and_mark_the_hidden_ones() -> None:
    video = torch.rand(5, 1, 4, 6)
    mask = torch.tensor([True, False, True, False, False])
    axes = plot_strips({"grey": video, "colour": torch.rand(5, 3, 4, 6)}, mask)
    shown = [image.get_array() for image in axes.get_images()]
    assert len(shown) == 10 and len(axes.patches) == 6
    np.testing.assert_array_equal(shown[3], video[3, 0].numpy())
    assert shown[5].shape == (4, 6, 3)
    assert [label.get_text() for label in axes.get_yticklabels()] == ["grey", "colour"]
    axes.figure.canvas.draw()
    given = plt.figure().add_subplot()
    assert plot_strips({"a": video[:, 0]}, axes=given) is given
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        bright = plot_strips({"noisy": 3 * torch.randn(5, 3, 4, 6)})
        bright.figure.canvas.draw()
    assert all(0 <= i.get_array().min() and i.get_array().max() <= 1 for i in bright.get_images())
    with pytest.raises(ValueError, match=r"rows\['flat'\] must be .* got shape \(5, 24\)"):
        plot_strips({"flat": video.flatten(1)})


def test_imputed_frames_are_true_filtered_and_smoothed() -> None:
    _, guide = kvae_pair()
    x, mask, _ = kvae_batch()
    axes = plot_imputed_frames(guide, x, mask, sequence=2)
    assert len(axes.get_images()) == 24 and len(axes.patches) == 3 * int((~mask[2]).sum())
    labels = [label.get_text() for label in axes.get_yticklabels()]
    assert labels == ["true", "filtered", "smoothed"]


def test_trajectories_are_those_of_the_guide() -> None:
    _, guide = kvae_pair("lstm")
    x, mask, _ = kvae_batch()
    axes = plot_trajectories(guide, x, mask, sequence=1)
    lines = {line.get_label(): line.get_xydata() for line in axes.get_lines()}
    expected = {
        "filtered": guide.filter(x, mask).a[1],
        "smoothed": guide.smooth(x, mask).a[1],
        "encoded": guide.smooth(x, mask).encoded[1],
    }
    for label, path in expected.items():
        np.testing.assert_allclose(lines[label], path.numpy(), rtol=1e-5, atol=1e-6)
    assert np.isnan(lines["encoded"]).any(1).sum() == int((~mask[1]).sum())


@pytest.mark.parametrize("modes", [1, 3])
def test_weights_of_the_last_code_are_heat_maps(modes: int) -> None:
    model, guide = kvae_pair("mlp", modes=modes)
    x, mask, _ = kvae_batch()
    panels = plot_weights(guide, x, mask, points=11)
    pictures = np.stack([panel.get_images()[0].get_array() for panel in panels])
    assert pictures.shape == (modes, 11, 11)
    np.testing.assert_allclose(pictures.sum(0), 1.0, rtol=1e-5)
    codes = guide.smooth(x, mask).a
    corner = torch.stack([codes[..., 0].max(), codes[..., 1].min()])[None]
    with torch.no_grad():
        weights = model.dynamics.network.step(corner, ())[0][0]
    np.testing.assert_allclose(pictures[:, 0, -1], weights.numpy(), rtol=1e-4)


@pytest.mark.parametrize("weights", ["lstm", "window"])
def test_weights_with_a_memory_are_points_along_the_sequences(weights: str) -> None:
    options = {"weights_options": {"window": 2}} if weights == "window" else {}
    _, guide = kvae_pair("mlp" if weights == "window" else weights, **options)
    x, mask, _ = kvae_batch()
    smoothed = guide.smooth(x, mask)
    for mode, panel in enumerate(plot_weights(guide, x, mask)):
        points = panel.collections[0]
        expected = smoothed.a[:, :-1].flatten(0, 1).numpy()
        np.testing.assert_allclose(points.get_offsets(), expected, rtol=1e-5)
        colours = smoothed.weights[:, 1:, mode].flatten().numpy()
        np.testing.assert_allclose(points.get_array(), colours, rtol=1e-5)


def test_weights_need_a_plane() -> None:
    _, guide = kvae_pair(obs=3)
    with pytest.raises(ValueError, match="codes of 2 coordinates; got 3"):
        plot_weights(guide, kvae_batch().x)


@pytest.mark.parametrize(("kind", "xs"), [("gap", [1.0, 7.0]), ("p", [0.1, 1.0])])
def test_curves_are_those_of_the_table(kind: str, xs: list[float]) -> None:
    table = {
        f"{method}_{kind}_{x:g}": x / (place + 1)
        for place, method in enumerate(("smooth", "filter", "copy_last"))
        for x in xs
    }
    axes = plot_imputation_curves(table | {"blank": 0.02, "smooth_other_3": 9.0}, kind, paper=True)
    lines = {line.get_label(): line.get_xydata() for line in axes.get_lines()}
    np.testing.assert_allclose(lines["filter"], [(x, x / 2) for x in xs])
    published = dict(map(tuple, lines["smooth, Fraccaro et al."]))
    assert published[7.0 if kind == "gap" else 0.5] == (0.0121 if kind == "gap" else 0.0076)
    assert "blank frame" in lines and len(lines) == 6
    with pytest.raises(ValueError, match="kind must be 'gap' or 'p'"):
        plot_imputation_curves(table, "random")


def test_without_matplotlib_the_error_says_what_to_install() -> None:
    code = (
        "import sys; sys.modules['matplotlib'] = None; sys.modules['matplotlib.pyplot'] = None\n"
        "from pyro_seq.evaluation.plots import plot_imputation_curves\n"
        "try: plot_imputation_curves({})\nexcept ImportError as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "pip install 'pyro-seq[plots]'" in done.stdout
