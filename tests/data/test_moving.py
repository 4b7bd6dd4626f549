from __future__ import annotations

import pytest
import torch

from pyro_seq.data import SHAPES, Pictures, moving_digits, moving_shapes

BANK = Pictures(torch.rand(5, 1, 28, 28, generator=torch.Generator().manual_seed(0)))


def test_digits_move_straight_and_bounce() -> None:
    scenes = moving_digits(BANK, 40, seed=0)
    assert scenes.frames.shape == (40, 20, 1, 64, 64) and (scenes.labels == -1).all()
    speed = scenes.info["velocity"].square().sum(-1).sqrt()
    torch.testing.assert_close(speed, torch.full_like(speed, 3.6))
    angles = torch.atan2(*scenes.info["velocity"].flatten(0, 1).unbind(-1))
    assert angles.min() < -2.5 and angles.max() > 2.5 and angles.abs().min() < 0.4
    assert scenes.positions.min() >= 0 and scenes.positions.max() <= 36
    step = scenes.positions.diff(dim=1).abs()
    assert step.max() <= 4


def test_the_brighter_digit_shows_and_pixels_have_owners() -> None:
    scenes = moving_digits(BANK, 3, time=6, size=40, seed=1)
    for sequence in range(3):
        layers = torch.zeros(6, 2, 40, 40)
        for time in range(6):
            for which in range(2):
                row, column = scenes.positions[sequence, time, which].tolist()
                digit = BANK.frames[scenes.info["rows"][sequence, which], 0]
                layers[time, which, row : row + 28, column : column + 28] = digit
        assert torch.equal(scenes.frames[sequence, :, 0], layers.amax(1))
        ink = layers > 0.1
        wanted = torch.where(ink.all(1), -1, ink[:, 0].int() + 2 * ink[:, 1].int())
        assert torch.equal(scenes.segments[sequence], wanted.long())


def test_shapes_are_outlines() -> None:
    square, up, down = SHAPES["shapes20"].outlines
    assert square.sum() == 40 and up.sum() == 48 and torch.equal(up.flip(0), down)
    assert torch.equal(up, up.flip(1)) and torch.equal(square, square.mT)
    assert SHAPES["squares12"].outlines[0].sum() == 16
    thin = SHAPES["shapes12"].outlines[1]
    assert thin.shape == (4, 7) and thin.sum() == 12 and thin[-1].all() and thin[0].sum() == 1


@pytest.mark.parametrize("name", list(SHAPES))
def test_shapes_are_put_over_one_another(name: str) -> None:
    scenes = moving_shapes(name, 30, time=8, seed=0)
    kinds, objects, size = SHAPES[name]
    assert scenes.frames.shape == (30, 8, 1, size, size) and scenes.labels.shape == (30, objects)
    for sequence in range(30):
        for time in (0, 7):
            count = torch.zeros(size, size, dtype=torch.long)
            owner = torch.zeros(size, size, dtype=torch.long)
            for which in range(objects):
                kind = kinds[scenes.labels[sequence, which]]
                row, column = scenes.positions[sequence, time, which].tolist()
                place = slice(row, row + kind.shape[0]), slice(column, column + kind.shape[1])
                assert count[place].shape == kind.shape
                count[place] += kind
                owner[place] = torch.where(kind, which + 1, owner[place])
            assert torch.equal(scenes.frames[sequence, time, 0], (count > 0).float())
            wanted = torch.where(count > 1, -1, torch.where(count == 1, owner, 0))
            assert torch.equal(scenes.segments[sequence, time], wanted)


def test_squares_are_as_bright_as_they_were_measured() -> None:
    scenes = moving_shapes("squares12", 20_000, seed=1)
    assert scenes.frames.mean().item() == pytest.approx(0.206, abs=0.001)
    assert scenes.positions.unique().tolist() == list(range(8))


def test_shapes_move_in_eight_directions() -> None:
    scenes = moving_shapes("squares12", 300, time=8, seed=2)
    assert len(scenes.info["velocity"].flatten(0, 1).unique(dim=0)) == 8
    step = scenes.positions.diff(dim=1).abs()
    assert step.max() == 1 and (step.sum(-1) >= 1).float().mean() > 0.95


def test_bad_input() -> None:
    with pytest.raises(ValueError, match="name: expected one of squares12.*got 'shapes'"):
        moving_shapes("shapes", 1, seed=0)
    with pytest.raises(ValueError, match="time: expected at least 1, got 0"):
        moving_shapes("shapes12", 1, time=0, seed=0)
    with pytest.raises(ValueError, match=r"size: expected at least that of a digit.*got 20"):
        moving_digits(BANK, 1, size=20, seed=0)
    with pytest.raises(ValueError, match="digits: expected at least 1, got 0"):
        moving_digits(BANK, 1, digits=0, seed=0)
    with pytest.raises(ValueError, match=r"bank: expected pictures \(1, height, width\)"):
        moving_digits(Pictures(torch.zeros(2, 3, 4, 4)), 1, seed=0)
