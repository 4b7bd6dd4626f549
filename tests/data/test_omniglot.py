from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch

from pyro_seq.data import ALPHABETS, load_omniglot
from pyro_seq.data.omniglot import _reduce, held_out

ROOT = Path(os.environ.get("PYRO_SEQ_DATA", ""))


def test_three_characters_of_each_alphabet_are_held_out() -> None:
    test = held_out()
    assert len(ALPHABETS) == 50 and test.shape == (1623,) and test.sum() == 150
    ends = np.cumsum(list(ALPHABETS.values()))
    for part in np.split(test, ends[:-1]):
        assert part.sum() == 3
    assert (held_out() == test).all()
    places = [part.nonzero()[0].tolist() for part in np.split(test, ends[:-1])]
    assert len({tuple(place) for place in places}) > 40


def test_drawings_are_reduced_by_area() -> None:
    ink = np.random.default_rng(0).random((2, 105, 105)) < 0.4
    fine = np.repeat(np.repeat(ink, 4, 1), 4, 2).astype(float)  # 420 = 28 * 15
    wanted = fine.reshape(2, 28, 15, 28, 15).mean((2, 4)) * 255
    assert np.abs(_reduce(ink) - wanted).max() < 0.51
    assert (_reduce(np.ones((1, 105, 105), dtype=bool)) == 255).all()


def test_unknown_split_is_named() -> None:
    with pytest.raises(ValueError, match="split: expected 'train' or 'test', got 'background'"):
        load_omniglot("background")


@pytest.mark.data
def test_held_out_characters_are_those_of_the_files() -> None:
    if not (ROOT / "omniglot" / "images_evaluation.npz").is_file():
        pytest.skip("data: no Omniglot in $PYRO_SEQ_DATA/omniglot")
    bank = load_omniglot("test", ROOT)
    assert bank.frames.shape == (3000, 1, 28, 28) and bank.frames.dtype == torch.uint8
    assert torch.equal(
        bank.labels, torch.from_numpy(held_out().nonzero()[0]).repeat_interleave(20)
    )
    reduced = [
        ROOT / "omniglot" / f"omniglot28_{part}.npz" for part in ("background", "evaluation")
    ]
    if all(path.is_file() for path in reduced):  # reduced by whole pixels
        wanted = np.concatenate([np.load(path)["images"] for path in reduced])[held_out()]
        came = bank.frames[:, 0].numpy().reshape(wanted.shape).astype(int)
        assert np.abs(came - wanted).mean() < 5
        assert np.corrcoef(came.ravel(), wanted.ravel())[0, 1] > 0.98
