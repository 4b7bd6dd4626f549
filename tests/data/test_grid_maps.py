from __future__ import annotations

import pytest
import torch

from pyro_seq.data import MOVES, Pictures, Recall, Vectors, check_batch, grid_map, recall
from tests.data.test_recall_tasks import bank, uniform

NOVEL = torch.tensor(
    [1, 1, 0.66, 0.67, 0.55, 0.55, 0.47, 0.49, 0.44, 0.42, 0.39, 0.38, 0.36]
    + [0.36, 0.31, 0.31, 0.29, 0.29, 0.27, 0.26, 0.25, 0.25, 0.22, 0.23, 0.20]
)
"""The probability that the frame of a step is that of a new cell, as simulated by others."""


@pytest.fixture(scope="module")
def maps() -> Recall:
    return grid_map(bank(), 3000, seed=0)


def test_actions_are_legal_and_lead_to_the_cell(maps: Recall) -> None:
    cells, actions = maps.info["cells"], maps.info["actions"]
    row, column = cells // 4, cells % 4
    step = {"up": (-1, 0), "down": (1, 0), "left": (0, -1), "right": (0, 1)}
    moves = torch.tensor([step[name] for name in MOVES])[actions[:, 1:]]
    assert torch.equal(row.diff(), moves[..., 0]) and torch.equal(column.diff(), moves[..., 1])
    assert cells.min() == 0 and cells.max() == 15 and (actions[:, 0] == -1).all()


def test_actions_are_the_controls(maps: Recall) -> None:
    controls, actions = maps.batch.controls, maps.info["actions"]
    check_batch(*maps.batch)
    assert controls.shape == (3000, 25, 4) and (controls[:, 0] == 0).all()
    assert torch.equal(controls[:, 1:].argmax(2), actions[:, 1:])
    assert (controls[:, 1:].sum(2) == 1).all()


def test_every_legal_action_is_as_likely(maps: Recall) -> None:
    cells, actions = maps.info["cells"], maps.info["actions"]
    assert uniform(torch.bincount(cells[:, 0]).double())
    for cell in range(16):
        taken = torch.bincount(actions[:, 1:][cells[:, :-1] == cell], minlength=4)
        legal = [cell >= 4, cell < 12, cell % 4 > 0, cell % 4 < 3]
        assert (taken > 0).tolist() == legal
        assert uniform(taken[torch.tensor(legal)].double())


def test_a_cell_shows_one_picture(maps: Recall) -> None:
    pictures = bank()
    shown = maps.info["map"].gather(1, maps.info["cells"])
    assert torch.equal((maps.frames * 255).round().byte(), pictures.frames[shown])
    assert torch.equal(maps.labels, pictures.labels[shown])
    for cells, source in zip(maps.info["cells"][:200].tolist(), maps.source, strict=False):
        first = [cells.index(cell) for cell in cells]
        wanted = [old if old < step else -1 for step, old in enumerate(first)]
        assert source.tolist() == wanted
    assert torch.equal(maps.recalled, maps.source >= 0)
    assert torch.equal(maps.before, ~maps.recalled)


def test_new_cells_become_rare(maps: Recall) -> None:
    novel = grid_map(Vectors(1), 10_000, seed=1).before.float()
    assert (novel.mean(0) - NOVEL).abs().max() < 0.025
    assert abs(novel.sum(1).mean() - 10.6) < 0.1


def test_other_sizes_and_vectors() -> None:
    came = grid_map(Vectors(3), 4, time=9, side=2, seed=0)
    assert came.frames.shape == (4, 9, 3) and came.info["cells"].max() == 3
    assert "map" not in came.info and (came.labels == -1).all()
    sources = came.source.clamp(min=0)[..., None].expand(-1, -1, 3)
    repeated = came.frames.gather(1, sources)
    assert torch.equal(repeated[came.recalled], came.frames[came.recalled])


def test_the_seed_decides_everything(maps: Recall) -> None:
    again, other = (grid_map(bank(), 3000, seed=seed) for seed in (0, 1))
    assert torch.equal(again.frames, maps.frames)
    assert torch.equal(again.batch.controls, maps.batch.controls)
    assert not torch.equal(other.info["cells"], maps.info["cells"])


@pytest.mark.gpu
def test_frames_are_gathered_on_the_device_of_the_bank(maps: Recall) -> None:
    there = grid_map(bank().to("cuda"), 3000, seed=0)
    assert there.frames.is_cuda and there.batch.controls.is_cuda
    assert torch.equal(there.batch.controls.cpu(), maps.batch.controls)


def test_banks_without_labels_will_do() -> None:
    plain = Pictures(bank().frames)
    assert (grid_map(plain, 2, seed=0).labels == -1).all()
    assert (recall("cued", plain, 2, length=5, recalled=2, seed=0).labels == -1).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch": 0}, "batch: expected at least 1, got 0"),
        ({"time": 0}, "time: expected at least 1, got 0"),
        ({"side": 1}, "side: expected at least 2, got 1"),
    ],
)
def test_errors_name_the_argument(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        grid_map(bank(), **{"batch": 2, "seed": 0} | options)
