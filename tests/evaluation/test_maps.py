"""What is generated twice, and reads over a map, against counts by hand and by loops."""

from __future__ import annotations

import math

import matplotlib
import pytest
import torch

from pyro_seq.data import Vectors, grid_map
from pyro_seq.evaluation.maps import (
    consistency,
    overlay,
    plot_overlays,
    plot_reads_on_map,
    reads_by_cell,
    visits,
)

matplotlib.use("Agg")


def test_visits_are_counted_as_by_a_loop() -> None:
    cells = grid_map(Vectors(2), 6, time=20, side=3, seed=0).info["cells"]
    for walk, counted in zip(cells.tolist(), visits(cells).tolist(), strict=True):
        assert counted == [walk[:t].count(cell) for t, cell in enumerate(walk)]


def test_consistency_is_that_of_a_loop() -> None:
    maps = grid_map(Vectors(2, classes=3), 12, time=15, side=2, seed=1)
    torch.manual_seed(0)
    labels = torch.randint(3, maps.labels.shape)
    cells, shown = maps.info["cells"].tolist(), 4
    recalled, agreeing = [], []
    for walk, seen, truth in zip(cells, labels.tolist(), maps.labels.tolist(), strict=True):
        for t in range(shown, len(walk)):
            if walk[t] in walk[:shown]:
                recalled.append(seen[t] == truth[t])
            elif walk[t] in walk[:t]:
                agreeing.append(seen[t] == seen[walk.index(walk[t])])
    found = consistency(labels, maps.labels, maps.source, shown)
    assert found.recalled == pytest.approx(sum(recalled) / len(recalled))
    assert found.agreeing == pytest.approx(sum(agreeing) / len(agreeing))
    assert consistency(maps.labels, maps.labels, maps.source, shown) == (1.0, 1.0)


def test_consistency_of_nothing_is_nan_and_shapes_are_named() -> None:
    labels, new = torch.zeros(2, 3, dtype=torch.long), torch.full((2, 3), -1)
    assert all(math.isnan(share) for share in consistency(labels, labels, new, 1))
    with pytest.raises(ValueError, match="labels, truth and source must be .sequences, time."):
        consistency(labels, labels, new[:, :2], 1)


def test_reads_fall_on_the_cells_of_the_rows() -> None:
    """Row n holds the latent of step n; row 0, and rows to be written, are of no cell."""
    cells = torch.tensor([[2, 0, 2, 1]])
    weights = torch.zeros(1, 4, 5)
    weights[0, 3] = torch.tensor([0.1, 0.2, 0.3, 0.3, 0.1])
    reads = reads_by_cell(weights, cells, 4)
    torch.testing.assert_close(reads[0, 3], torch.tensor([0.3, 0.0, 0.5, 0.0]))
    assert not reads[0, :3].any()
    for wrong in (weights[..., :3], weights[:, :3]):
        with pytest.raises(ValueError, match=r"weights must be \(\*batch, time, slots\), slots"):
            reads_by_cell(wrong, cells, 4)


def test_visits_are_drawn_over_each_other() -> None:
    one, two = torch.tensor([[[1.0, 0.0]]]), torch.tensor([[[0.0, 1.0]]])
    frames, cells = torch.stack([one, one, two, one, two]), torch.tensor([0, 3, 0, 3, 3])
    picture = overlay(frames, cells, 2)
    assert picture.shape == (3, 2, 4)
    red, yellow, white = (1.0, 0.0, 0.0), (1.0, 1.0, 0.0), (1.0, 1.0, 1.0)
    assert tuple(picture[:, 0, 0]) == red and tuple(picture[:, 0, 1]) == yellow  # they differ
    assert tuple(picture[:, 1, 2]) == yellow and tuple(picture[:, 1, 3]) == white
    assert not picture[:, 0, 2:].any()
    with pytest.raises(ValueError, match="frames must be .time, 1, height, width. and cells"):
        overlay(frames, cells[:3], 2)


def test_plots_of_maps() -> None:
    cells = torch.tensor([0, 1, 3, 1, 0])
    frames, reads = torch.rand(5, 1, 4, 4), torch.rand(5, 4) / 4
    panels = plot_overlays({"true": frames, "icm": frames}, cells, 2, times=(2, 5, 9))
    assert panels.shape == (3, 2) and panels[2, 0].get_ylabel() == "icm"
    assert len(panels[0, 0].texts) == 1 and len(panels[0, 1].texts) == 3  # moves since the last
    panels = plot_reads_on_map(frames, reads, cells, 2, [3, 4])
    assert [panel.get_title() for panel in panels] == ["step 4", "step 5"]
    assert panels[1].patches[0].get_xy() == (-0.48, -0.48)
