from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from pyro_seq.data import Pictures, load_digits, load_mnist
from pyro_seq.data.pictures import finish

ROOT = Path(os.environ.get("PYRO_SEQ_DATA", ""))


def images(count: int = 300) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(256, (count, 1, 28, 28), dtype=torch.uint8, generator=generator)


def test_pictures_are_pooled_by_the_mean_of_four_pixels() -> None:
    came = Pictures(finish(images(), 14, False)).take(torch.arange(300))
    blocks = images().double().view(300, 1, 14, 2, 14, 2).mean((3, 5)) / 255
    torch.testing.assert_close(came.double(), blocks, rtol=0, atol=1e-6)


@pytest.mark.parametrize("size", [28, 14])
def test_binary_pictures_are_fixed_and_as_bright_as_the_grey_ones(size: int) -> None:
    state = torch.get_rng_state()
    grey = torch.arange(256, dtype=torch.uint8)[:, None, None, None].expand(-1, 1, 28, 28)
    one, again = (finish(grey, size, True) for _ in range(2))
    assert one.dtype == torch.bool and torch.equal(one, again)
    x = Pictures(one).take(torch.arange(256))
    assert set(x.unique().tolist()) == {0.0, 1.0} and x[0].max() == 0 and x[-1].min() == 1
    wanted = torch.arange(256) / 255
    error = (x.mean((1, 2, 3)) - wanted) / (wanted * (1 - wanted) / size**2 + 1e-9).sqrt()
    assert error.abs().max() < 4.5
    assert torch.equal(torch.get_rng_state(), state)


def test_frames_are_taken_in_the_shape_of_their_numbers() -> None:
    bank = Pictures(images(10))
    x = bank.take(torch.tensor([[3, 3, 0], [9, 1, 2]]))
    assert x.shape == (2, 3, 1, 28, 28) and torch.equal(x[0, 0], x[0, 1])
    assert torch.equal(x[1, 0], images(10)[9].float() / 255)
    floats = Pictures(torch.randn(4, 2, dtype=torch.float64))
    assert torch.equal(floats.take(torch.tensor([2])), floats.frames[2:3])


def test_other_sizes_are_refused() -> None:
    with pytest.raises(ValueError, match="size: expected 28 or 14 pixels, got 7"):
        finish(images(1), 7, False)


def test_unknown_split_is_named() -> None:
    with pytest.raises(ValueError, match="split: expected 'train' or 'test', got 'all'"):
        load_digits("all")


@pytest.mark.data
def test_digits_are_those_of_mnist() -> None:
    if not (ROOT / "mnist" / "t10k-images-idx3-ubyte.gz").is_file():
        pytest.skip("data: no MNIST in $PYRO_SEQ_DATA/mnist")
    bank, pooled = (load_digits("test", ROOT, size=size) for size in (28, 14))
    frames, labels = load_mnist("test", ROOT)
    rows = torch.arange(10_000)
    assert torch.equal((bank.take(rows) * 255).round().byte()[:, 0], torch.from_numpy(frames))
    assert torch.equal(bank.labels.byte(), torch.from_numpy(labels))
    assert pooled.take(rows).shape == (10_000, 1, 14, 14)
    torch.testing.assert_close(pooled.frames.mean(), bank.take(rows).mean(), rtol=1e-4, atol=0)
