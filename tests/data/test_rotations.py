from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from pyro_seq.data import FreshLoader, Rotations, render_rotations, rotation
from pyro_seq.data.ray_caster import SLOPE, Scene, render, scene

SCENES = 40


@pytest.fixture(scope="module")
def rotations() -> Rotations:
    return render_rotations(SCENES, seed=0)


def room(height: float = 1.0, camera: tuple[float, float, float] = (3.5, 3.5, 0.5)) -> Scene:
    """A room of 5 by 5 whose east, north, west and south walls have colours of their own."""
    cells = np.zeros((7, 7), dtype=np.int64)
    cells[6, :], cells[:, 6], cells[0, :], cells[:, 0] = 1, 2, 3, 4
    textures = np.broadcast_to(np.eye(4, 3, dtype=np.float32)[:, None, None], (4, 16, 16, 3))
    return Scene(
        cells,
        np.full((7, 7), height, dtype=np.float32),
        np.ascontiguousarray(textures),
        np.array([[np.pi / 2, 0.5, 0.6]], dtype=np.float32),
        np.array([[0, 0, 0], [1, 1, 1], [1, 1, 0]], dtype=np.float32),
        np.array(camera, dtype=np.float32),
    )


def brightest(picture: np.ndarray, row: int, column: int) -> int:
    return int(picture[:, row, column].argmax())


def test_directions_are_east_north_west_south() -> None:
    east, north, west, south = render(room(), np.arange(4) * np.pi / 2)
    for channel, picture in enumerate((east, north, west)):
        assert brightest(picture, 16, 16) == channel and picture[channel, 16, 16] > 100
    assert (south[:, 16, 16] == 0).all()
    (between,) = render(room(), np.array([np.pi / 4]))
    assert brightest(between, 16, 4) == 1 and brightest(between, 16, 28) == 0  # north on the left


@pytest.mark.parametrize("height", [0.8, 1.3])
def test_walls_are_as_high_as_perspective_has_it(height: float) -> None:
    place = room(height, camera=(3.2, 3.6, 0.4))
    (picture,) = render(place, np.array([0.0]), size=256)
    depth = 6 - 3.2
    slopes = -((2 * np.arange(256) + 1) / 256 - 1) * SLOPE
    for column in (64, 128, 190):  # the depth of a wall across the view is the same everywhere
        seen = picture[0, :, column].astype(int) - picture[1:, :, column].max(0) > 100
        wanted = (slopes > -0.4 / depth) & (slopes < (height - 0.4) / depth)
        assert (seen != wanted).sum() <= 2


def test_places_on_walls_are_those_of_rays() -> None:
    place = room(camera=(3.2, 3.6, 0.5))
    stripes = place.textures.copy()
    stripes[0] = (np.arange(16) / 16.0)[None, :, None]
    (picture,) = render(place._replace(textures=stripes), np.array([0.1]), size=128)
    columns = np.array([30, 50, 70, 100])
    slopes = ((2 * columns + 1) / 128 - 1) * SLOPE
    bearing = 0.1 - np.arctan(slopes)
    north = 3.6 + (6 - 3.2) * np.tan(bearing)
    depth = (6 - 3.2) / np.cos(bearing) * np.cos(bearing - 0.1)
    wanted = (north % 1.0) / (1 + 0.12 * depth) * 255
    np.testing.assert_allclose(picture[0, 64, columns], wanted, atol=255 / 16)


def test_buildings_stand_at_their_azimuth_above_the_wall() -> None:
    north, south = render(room(0.6), np.array([np.pi / 2, -np.pi / 2]), size=64)
    slopes = -((2 * np.arange(64) + 1) / 64 - 1) * SLOPE
    yellow = (north[2] == 0) & (north[0] > 100) & (north[1] > 100)
    rows = yellow[:, 32].nonzero()[0]
    assert abs(slopes[rows[0]] - 0.6) < 0.06 and yellow.any(0).sum() > 10
    half = yellow.any(0).nonzero()[0]
    assert abs(np.arctan(abs(((2 * half[0] + 1) / 64 - 1) * SLOPE)) - 0.5) < 0.05
    assert not ((south[2] == 0) & (south[0] > 100)).any()


def test_a_full_turn_shows_the_same() -> None:
    place = scene(np.random.default_rng(3), pillars=2)
    angles = np.linspace(0.0, 6.0, 7)
    np.testing.assert_allclose(
        render(place, angles).astype(int), render(place, angles + 2 * np.pi), atol=2
    )


def test_scenes_are_closed_mazes_with_a_free_middle() -> None:
    inner = []
    for seed in range(200):
        place = scene(np.random.default_rng(seed))
        cells = place.cells
        assert cells[[0, -1]].all() and cells[:, [0, -1]].all() and not cells[2:5, 2:5].any()
        assert cells.max() <= 6 and 3 <= len(place.buildings) <= 7
        inside = np.ones((5, 5), dtype=bool)
        inside[1:4, 1:4] = False
        inner.append((cells[1:6, 1:6][inside] > 0).mean())
    assert abs(np.mean(inner) - 0.45) < 0.03


@pytest.mark.parametrize("pillars", [1, 3, 4])
def test_pillars_have_their_own_textures(pillars: int) -> None:
    place = scene(np.random.default_rng(5), pillars=pillars)
    around = place.cells[2:5, 2:5]
    assert sorted(around[around > 0]) == list(range(7, 7 + pillars))
    assert around[1, 1] == 0 and len(place.textures) == 6 + pillars


def test_angles_follow_the_law_of_acceleration(rotations: Rotations) -> None:
    angles = rotations.angles
    speed = angles.diff(dim=1).rad2deg()
    assert (speed.diff(dim=1) > 0).all()
    assert speed[:, 0].min() > 2 and speed[:, 0].max() < 7
    assert 27 < speed[:, -1].min() and speed[:, -1].max() < 38
    turn = (angles[:, 15] - angles[:, 0]) / (2 * torch.pi)
    assert turn.min() > 0.98 and turn.max() < 1.02 and turn.std() > 0.005
    assert (angles[:, -1] - angles[:, 0]).min() > 2 * 2 * torch.pi
    # The speed comes from rest and nears its limit by one factor, exp(-1 / tau), at every step.
    gain = speed.diff(dim=1)
    factor = gain[:, 1:12] / gain[:, :11]
    torch.testing.assert_close(factor, factor[:, :1].expand(-1, 11), rtol=1e-6, atol=0)
    factor = factor[:, 0]
    delay = -1 / factor.log()
    assert delay.min() > 2 and delay.max() < 5 and delay.std() > 0.6
    limit = speed[:, 0] + gain[:, 0] / (1 - factor)
    torch.testing.assert_close(speed[:, 0] / limit, 1 - delay * (1 - factor))


def test_there_is_something_to_recall(rotations: Rotations) -> None:
    x = rotations.frames.double() / 255
    apart = torch.stack(
        [(x[:, t : t + 1] - x[:, :t]).abs().mean((2, 3, 4)).amin(1) for t in range(1, 30)], 1
    ).mean(0)
    new, again = apart[5:13], apart[15:]
    assert 0.09 < new.mean() < 0.13 and 0.04 < again.mean() < 0.09
    assert again.max() < 0.09 and again.max() < 0.8 * new.min()


def test_sequences_say_what_they_are(rotations: Rotations) -> None:
    came = rotation(6, scenes=rotations, seed=1)
    assert came.frames.shape == (6, 30, 3, 32, 32) and came.frames.dtype == torch.float32
    assert came.frames.min() >= 0 and came.frames.max() <= 1
    assert came.recalled[0].nonzero()[:, 0].tolist() == list(range(16, 30))
    assert came.before[0].nonzero()[:, 0].tolist() == list(range(2, 14))
    assert (came.source == -1).all() and (came.labels == -1).all()
    angles, nearest = came.info["angles"], came.info["nearest"]
    assert (nearest[:, :16] == -1).all() and nearest[:, 16:].min() >= 0
    turns = torch.exp(1j * angles)
    gaps = (turns[:, :, None] - turns[:, None, :16]).abs()
    best = gaps.gather(2, nearest.clamp(min=0)[..., None])[..., 0]
    torch.testing.assert_close(best[:, 16:], gaps.amin(2)[:, 16:])
    assert best[:, 16:].max() < 2 * np.sin(np.deg2rad(38 / 4)) + 1e-6


def test_the_neighbour_by_angle_is_closer_than_another_scene(rotations: Rotations) -> None:
    came = rotation(20, scenes=rotations, seed=1)
    rows = torch.arange(20)[:, None]
    mate = came.frames[rows, came.info["nearest"][:, 16:]]
    stranger = came.frames.roll(1, 0)[:, 16:]
    own = (came.frames[:, 16:] - mate).abs().mean((2, 3, 4))
    other = (came.frames[:, 16:] - stranger).abs().mean((2, 3, 4))
    different = (came.info["angles"] != came.info["angles"].roll(1, 0)).any(1)
    assert (own < other)[different].double().mean() > 0.95


def test_seeds_decide_everything_and_share_no_scene(rotations: Rotations) -> None:
    few, other = render_rotations(3, seed=0), render_rotations(3, seed=1)
    assert torch.equal(few.frames, rotations.frames[:3])
    assert torch.equal(few.angles, rotations.angles[:3])
    assert not torch.isin(other.angles, rotations.angles).any()
    one, again, more = (rotation(2, time=4, seed=seed) for seed in (5, 5, 6))
    assert torch.equal(one.frames, again.frames) and not torch.equal(one.frames, more.frames)
    loader = FreshLoader(partial(rotation, 2, scenes=few), 2)
    assert next(iter(loader)).x.shape == (2, 30, 3, 32, 32)


def test_rendered_scenes_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = {"time": 3, "size": 8, "seed": 0, "cache_dir": tmp_path / "cache"}
    first = render_rotations(2, **options)
    assert len(list((tmp_path / "cache").iterdir())) == 1
    monkeypatch.setattr("pyro_seq.data.rotations.render", None)
    again = render_rotations(2, **options)
    assert torch.equal(first.frames, again.frames) and torch.equal(first.angles, again.angles)
    with pytest.raises(TypeError):
        render_rotations(2, **options | {"seed": 1})


@pytest.mark.gpu
def test_batches_of_rendered_scenes_are_made_on_their_device(rotations: Rotations) -> None:
    there = rotation(3, scenes=rotations.to("cuda"), seed=0)
    assert there.frames.is_cuda and there.info["nearest"].is_cuda
    torch.testing.assert_close(there.frames.cpu(), rotation(3, scenes=rotations, seed=0).frames)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch": 0}, "batch: expected at least 1, got 0"),
        ({"time": 0}, "time: expected at least 1, got 0"),
        ({"pillars": 5}, "pillars: expected from 0 to 4, got 5"),
    ],
)
def test_errors_name_the_argument(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        rotation(**{"batch": 1, "seed": 0} | options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"time": 2.5}, r"time: expected an int, got 2\.5"),
        ({"pillars": 1.5}, r"pillars: expected an int, got 1\.5"),
        ({"scenes": 5}, "scenes: expected Rotations or None, got int"),
    ],
)
def test_what_is_no_number_is_named(options: dict, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        rotation(**{"batch": 1, "seed": 0} | options)
