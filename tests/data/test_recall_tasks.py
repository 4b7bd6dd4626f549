from __future__ import annotations

import math
import os
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from pyro_seq.data import (
    RECALL_TASKS,
    Pictures,
    Recall,
    Vectors,
    check_batch,
    load_digits,
    recall,
)

ROOT = Path(os.environ.get("PYRO_SEQ_DATA", ""))
LENGTH, RECALLED = 12, 4


def bank(pictures: int = 500, classes: int = 10) -> Pictures:
    """Pictures of which no two are alike, and whose labels are drawn at random."""
    generator = torch.Generator().manual_seed(7)
    frames = torch.randint(256, (pictures, 1, 3, 2), dtype=torch.uint8, generator=generator)
    assert len(frames.unique(dim=0)) == pictures
    return Pictures(frames, torch.randint(classes, (pictures,), generator=generator))


def draw(task: str, batch: int = 200, **options: object) -> Recall:
    options = {"length": LENGTH, "recalled": RECALLED, "seed": 3} | options
    return recall(task, options.pop("bank", bank()), batch, **options)


def uniform(counts: Tensor) -> bool:
    """Whether counts can come of equal probabilities: chi-squared below mean + 5 deviations."""
    expected = counts.sum() / len(counts)
    spread = ((counts - expected) ** 2 / expected).sum()
    return bool(spread < len(counts) - 1 + 5 * math.sqrt(2 * (len(counts) - 1)))


@pytest.mark.parametrize("task", RECALL_TASKS)
def test_frames_labels_and_sources_agree(task: str) -> None:
    pictures = bank()
    came = draw(task, bank=pictures)
    x, mask, controls = came.batch
    assert x.shape == (200, LENGTH + RECALLED, 1, 3, 2) and mask is None and controls is None
    check_batch(x)
    rows = came.info["rows"]
    assert torch.equal(came.labels, pictures.labels[rows])
    assert torch.equal((x * 255).round().byte(), pictures.frames[rows])
    assert (came.source[:, :LENGTH] == -1).all()
    assert not (came.recalled & came.before).any() and not came.before[:, LENGTH:].any()
    assert (came.before.sum(1) == LENGTH - RECALLED).all()
    for sequence, step in (came.source >= 0).nonzero().tolist():
        source = came.source[sequence, step]
        assert torch.equal(x[sequence, step], x[sequence, source])


@pytest.mark.parametrize("task", ["perfect", "one_shot"])
def test_perfect_recall_begins_again(task: str) -> None:
    came = draw(task)
    assert torch.equal(came.frames[:, LENGTH:], came.frames[:, :RECALLED])
    assert came.source[:, LENGTH:].tolist() == [[0, 1, 2, 3]] * 200
    assert torch.equal(came.recalled, (torch.arange(16) >= LENGTH).expand(200, -1))


def test_first_frames_are_drawn_evenly_from_the_whole_bank() -> None:
    rows = draw("perfect", batch=2000, bank=bank(50), length=10).info["rows"][:, :10]
    assert uniform(torch.bincount(rows.flatten(), minlength=50).double())
    assert uniform(torch.bincount(rows[:, 0], minlength=50).double())


@pytest.mark.parametrize("odd", [1, 0])
def test_parity_is_told_by_new_pictures(odd: int) -> None:
    came = draw("parity", odd=odd, batch=1000)
    told, digits = came.labels[:, LENGTH:], came.labels[:, :RECALLED]
    assert torch.equal(told == odd, digits % 2 == 1) and told.max() == 1
    assert (came.source == -1).all()
    pictures = bank()
    for kind in (0, 1):
        shown = came.info["rows"][:, LENGTH:][told == kind]
        wanted = (pictures.labels == kind).nonzero()[:, 0]
        assert torch.equal(shown.unique(), wanted)
        assert uniform(torch.bincount(shown)[wanted].double())


def test_dynamic_dependency_follows_the_labels() -> None:
    came = draw("dynamic", batch=300)
    for x, labels, source in zip(came.frames, came.labels, came.source, strict=True):
        frames, y = list(x[:LENGTH]), labels[:LENGTH].tolist()
        for _ in range(RECALLED):
            address = y[-1]
            frames.append(frames[address])
            y.append(y[address])
        assert torch.equal(torch.stack(frames), x) and labels.tolist() == y
        assert source[LENGTH:].tolist() == y[LENGTH - 1 : -1]
    assert came.source.max() == 9


def test_cue_is_a_window_but_never_the_last() -> None:
    came = draw("cued", batch=4000, length=20, recalled=5)
    start = came.info["start"]
    assert torch.equal(came.source[:, 20:], start[:, None] + torch.arange(5))
    assert start.min() == 0 and start.max() == 14
    assert uniform(torch.bincount(start).double())
    assert came.recalled[0].nonzero()[:, 0].tolist() == [21, 22, 23, 24]
    for sequence, first in enumerate(start[:50].tolist()):
        window = came.frames[sequence, first : first + 5]
        assert torch.equal(came.frames[sequence, 20:], window)


@pytest.mark.parametrize("task", ["perfect", "dynamic", "cued"])
def test_vectors_take_the_place_of_pictures(task: str) -> None:
    came = draw(task, bank=Vectors(6, classes=8), batch=500)
    code, noise = came.frames[..., :8], came.frames[..., 8:]
    assert torch.equal(code.argmax(2), came.labels) and (code.sum(2) == 1).all()
    fresh = noise[:, :LENGTH].flatten()
    assert abs(fresh.mean()) < 0.03 and abs(fresh.var() - 1) < 0.03
    assert len(noise[:, :LENGTH].flatten(0, 1).unique(dim=0)) == 500 * LENGTH
    sources = came.source[:, LENGTH:, None].expand(-1, -1, 14)
    assert torch.equal(came.frames.gather(1, sources), came.frames[:, LENGTH:])
    plain = draw("perfect", bank=Vectors(6))
    assert plain.frames.shape == (200, 16, 6) and (plain.labels == -1).all()
    assert "rows" not in plain.info


@pytest.mark.parametrize("task", RECALL_TASKS)
def test_the_seed_decides_everything(task: str) -> None:
    state = torch.get_rng_state()
    one, again, other = (draw(task, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(one.frames, again.frames) and torch.equal(one.labels, again.labels)
    assert not torch.equal(one.frames, other.frames)
    generator = torch.Generator().manual_seed(1)
    assert torch.equal(one.frames, draw(task, seed=generator).frames)
    assert not torch.equal(one.frames, draw(task, seed=generator).frames)
    assert torch.equal(torch.get_rng_state(), state)


def test_frames_are_floats_of_the_default_type() -> None:
    assert draw("perfect").frames.dtype == torch.float32
    torch.set_default_dtype(torch.float64)
    assert draw("perfect").frames.dtype == draw("cued", bank=Vectors(3)).frames.dtype


@pytest.mark.gpu
@pytest.mark.parametrize("task", RECALL_TASKS)
def test_frames_are_gathered_on_the_device_of_the_bank(task: str) -> None:
    here, there = (draw(task, bank=bank().to(device)) for device in ("cpu", "cuda"))
    assert there.frames.is_cuda and there.source.is_cuda and there.info["rows"].is_cuda
    torch.testing.assert_close(there.frames.cpu(), here.frames)
    assert torch.equal(there.labels.cpu(), here.labels)


@pytest.mark.parametrize(
    ("task", "options", "message"),
    [
        ("cue", {}, "task: expected one of perfect, one_shot, parity, dynamic, cued, got 'cue'"),
        ("perfect", {"batch": 0}, "batch: expected at least 1, got 0"),
        ("perfect", {"recalled": 0}, "recalled: expected at least 1, got 0"),
        ("perfect", {"recalled": 12}, "recalled: expected from 1 .* got 12"),
        ("cued", {"recalled": 1}, "recalled: expected from 2 frames .*'cued', got 1"),
        ("parity", {"odd": 2}, "odd: expected the class 0 or 1, got 2"),
        ("parity", {"bank": Vectors(4, 2)}, "bank: expected pictures in the task 'parity'"),
        ("parity", {"bank": bank()._replace(labels=None)}, "bank: expected one with labels"),
        ("parity", {"bank": bank(classes=1)}, "bank: expected pictures of the labels 0 and 1"),
        ("dynamic", {"bank": Vectors(4)}, "bank: expected one with labels .*'dynamic', got none"),
        ("dynamic", {"length": 9}, "length: expected at least 10 frames .* got 9"),
    ],
)
def test_errors_name_the_argument(task: str, options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        draw(task, **options)


@pytest.mark.data
def test_tasks_on_digits_have_right_classes() -> None:
    if not (ROOT / "mnist" / "t10k-images-idx3-ubyte.gz").is_file():
        pytest.skip("data: no MNIST in $PYRO_SEQ_DATA/mnist")
    digits = load_digits("test", ROOT)
    came = recall("parity", digits, 400, length=20, recalled=5, seed=0)
    told = came.labels[:, 20:]
    assert torch.equal(told, came.labels[:, :5] % 2)
    centre = came.frames[:, 20:, 0, 12:16, 12:16].mean((2, 3))
    assert centre[told == 1].mean() > 0.5 > 0.2 > centre[told == 0].mean()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"bank": None}, "bank: expected Pictures or Vectors, got NoneType"),
        ({"bank": torch.rand(3, 4)}, "bank: expected Pictures or Vectors, got Tensor"),
        ({"bank": Vectors(2.5)}, r"size: expected an int, got 2\.5"),
        ({"batch": 2.5}, r"batch: expected an int, got 2\.5"),
        ({"length": 6.0}, r"length: expected an int, got 6\.0"),
        ({"recalled": "2"}, "recalled: expected an int, got '2'"),
        ({"seed": None}, "seed: expected an int or a torch.Generator, got None"),
        ({"seed": 1.5}, r"seed: expected an int or a torch.Generator, got 1\.5"),
    ],
)
def test_what_is_no_bank_or_number_is_named(options: dict, message: str) -> None:
    given = {"bank": Vectors(4), "batch": 2, "length": 6, "recalled": 2, "seed": 0} | options
    with pytest.raises(TypeError, match=message):
        recall("perfect", **given)


@pytest.mark.parametrize(
    ("frames", "labels", "message"),
    [
        (torch.rand(0, 2), None, "bank: expected frames in a tensor .* one or more"),
        (np.zeros((3, 2)), None, "bank: expected frames in a tensor"),
        (torch.rand(3, 2), torch.arange(2), r"labels in a tensor .* = \(3,\), got Tensor \(2,\)"),
        (torch.rand(3, 2), np.arange(3), r"labels in a tensor .* got ndarray \(3,\)"),
        (torch.rand(3, 2), torch.arange(3.0), "long labels, got torch.float32. Use labels.long"),
        (torch.rand(3, 2), torch.arange(3) - 1, "labels from 0 on .* got less"),
    ],
)
def test_banks_that_do_not_fit_are_named(frames: Any, labels: Any, message: str) -> None:  # noqa: ANN401
    with pytest.raises(ValueError, match=message):
        recall("dynamic", Pictures(frames, labels), 2, length=6, recalled=2, seed=0)


def test_a_seed_may_be_of_numpy() -> None:
    draw = partial(recall, "perfect", Vectors(3), 2, length=4, recalled=1)
    assert torch.equal(draw(seed=np.int64(3)).frames, draw(seed=3).frames)
