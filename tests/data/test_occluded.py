from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from pyro_seq.data import Pictures, Scenes, load_digits, load_small_digits
from pyro_seq.data.occluded import occluded_digits, occluder

ROOT = Path(os.environ.get("PYRO_SEQ_DATA", ""))
BANK = Pictures(torch.rand(9, 1, 14, 14) * (torch.rand(9, 1, 14, 14) > 0.5), torch.arange(9))


def errors(scenes: Scenes) -> tuple[float, float]:
    """Squared errors per pixel of next frames, of zeros and of the frame before, times 1e5."""
    x = scenes.frames.double()
    zero, last = x[:, 1:].square().mean(), (x[:, 1:] - x[:, :-1]).square().mean()
    return 1e5 * zero.item(), 1e5 * last.item()


def test_the_bars_are_where_the_paper_has_them() -> None:
    hidden = ~occluder(32)
    bars = [8, 9, 10, 11, 20, 21, 22, 23]
    assert hidden.all(0).nonzero()[:, 0].tolist() == hidden.all(1).nonzero()[:, 0].tolist() == bars
    assert (~hidden).float().mean() == 0.5625
    assert (~occluder(16)).all(0).nonzero()[:, 0].tolist() == [4, 5, 10, 11]


def test_frames_are_digits_behind_bars() -> None:
    scenes = occluded_digits(BANK, 6, seed=0)
    assert scenes.frames.shape == (6, 5, 1, 32, 32)
    assert scenes.frames[..., ~occluder(32)].abs().max() == 0
    for sequence in range(6):
        digit = BANK.frames[scenes.info["rows"][sequence], 0]
        assert scenes.labels[sequence, 0] == scenes.info["rows"][sequence]
        for time in range(5):
            row, column = scenes.positions[sequence, time, 0].tolist()
            whole = torch.zeros(32, 32)
            whole[row : row + 14, column : column + 14] = digit
            assert torch.equal(scenes.frames[sequence, time, 0], whole * occluder(32))


def test_a_step_is_a_knights_move() -> None:
    scenes = occluded_digits(BANK, 200, time=9, seed=0)
    step = scenes.positions.diff(dim=1)[:, :, 0].abs()
    free = (step.sum(-1) == 3) & (step.amax(-1) == 2)
    assert free.float().mean() > 0.75
    assert step.max() == 2 and scenes.positions.min() == 0 and scenes.positions.max() == 18
    start = scenes.positions[:, 0, 0]
    assert len(start.unique(dim=0)) > 100


def test_the_optimal_reconstruction_shows_what_was_seen() -> None:
    scenes = occluded_digits(BANK, 8, seed=1)
    for sequence in range(8):
        best = torch.zeros(32, 32)
        row, column = scenes.positions[sequence, -1, 0].tolist()
        for time in range(5):  # frames laid over one another, moved to where the digit is last
            down, along = (scenes.positions[sequence, time, 0]).tolist()
            seen = scenes.frames[sequence, time, 0, down : down + 14, along : along + 14]
            part = best[row : row + 14, column : column + 14]
            best[row : row + 14, column : column + 14] = torch.maximum(part, seen)
        torch.testing.assert_close(scenes.info["reconstruction"][sequence, 0], best)


def test_segments_are_what_can_be_seen_of_the_digit() -> None:
    scenes = occluded_digits(BANK, 4, seed=2)
    assert torch.equal(scenes.segments > 0, scenes.frames[:, :, 0] > 0)


@pytest.mark.data
def test_occluded_mnist_is_as_hard_as_it_was_measured() -> None:
    if not (ROOT / "mnist" / "t10k-images-idx3-ubyte.gz").is_file():
        pytest.skip("data: no MNIST in $PYRO_SEQ_DATA/mnist")
    bank = load_digits("test", ROOT, size=14)
    scenes = occluded_digits(bank, 4000, seed=0)
    zero, last = errors(scenes)
    assert zero == pytest.approx(702, rel=0.02) and last == pytest.approx(906, rel=0.02)
    mean = scenes.frames.mean((0, 1))
    spread = (scenes.frames[:, 1:] - mean).square().mean().item()
    assert 1e5 * spread == pytest.approx(650, rel=0.02)
    assert scenes.info["seen"].float().mean().item() == pytest.approx(0.908, abs=0.01)
    digits = bank.take(scenes.info["rows"]).sum((1, 2, 3))
    shown = scenes.info["reconstruction"].sum() / digits.sum()
    assert shown.item() == pytest.approx(0.859, abs=0.01)
    ink = (scenes.frames.sum((2, 3, 4)) / digits[:, None]).mean()
    assert ink.item() == pytest.approx(0.383, abs=0.015)


def test_small_digits_are_as_hard_as_they_were_measured() -> None:
    pytest.importorskip("sklearn")
    train, test = load_small_digits("train"), load_small_digits("test")
    assert len(train.frames) == 1397 and len(test.frames) == 400
    both = torch.cat([train.frames, test.frames]).flatten(1)
    assert len(both) == 1797 and both.min() == 0 and both.max() == 1
    assert torch.equal(both * 16, (both * 16).round())
    assert torch.bincount(train.labels).min() > 120 and torch.bincount(test.labels).min() > 25
    scenes = occluded_digits(train, 6000, seed=0)
    assert scenes.frames.shape[2:] == (1, 16, 16)
    zero, last = errors(scenes)
    assert zero == pytest.approx(2525, rel=0.02) and last == pytest.approx(3162, rel=0.02)


def test_small_digits_without_scikit_learn(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(ImportError, match=r"scikit-learn: pip install 'pyro-seq\[digits\]'"):
        load_small_digits("train")
    with pytest.raises(ValueError, match="split: expected 'train' or 'test', got 'valid'"):
        load_small_digits("valid")


def test_bad_input() -> None:
    with pytest.raises(ValueError, match="batch: expected at least 1, got 0"):
        occluded_digits(BANK, 0, seed=0)
    with pytest.raises(ValueError, match="size: expected a multiple of 8 pixels, got 30"):
        occluded_digits(BANK, 1, size=30, seed=0)
    with pytest.raises(ValueError, match="size: expected at least the 14 pixels of a digit"):
        occluded_digits(BANK, 1, size=8, seed=0)
    with pytest.raises(ValueError, match=r"bank: expected square pictures.*got frames of \(8,\)"):
        occluded_digits(Pictures(torch.zeros(3, 8)), 1, seed=0)
