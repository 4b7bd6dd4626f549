r"""Digits of one texture on a background of another: Textured MNIST.

.. math:: x = m \odot \tau_1 + (1 - m) \odot \tau_2

Neither grey values nor edges tell the digit from its background, the textures alone do.

References:
    I. Prémont-Schwarz, A. Ilin, T. H. Hao, A. Rasmus, R. Boney, H. Valpola (2017). Recurrent
    Ladder Networks. https://arxiv.org/abs/1707.09219
    K. Greff, A. Rasmus, M. Berglund, T. H. Hao, J. Schmidhuber, H. Valpola (2016). Tagger: Deep
    Unsupervised Perceptual Grouping. https://arxiv.org/abs/1606.06724
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from pyro_seq.data.arguments import check_numbers
from pyro_seq.data.batch import Batch
from pyro_seq.data.pictures import Pictures, grey, load_small_digits, seeded
from pyro_seq.data.scenes import Scenes, fold, moved, placed
from pyro_seq.data.textures import procedural_textures
from pyro_seq.plugins import register

__all__ = ["textured_digits"]

INK = 0.5
SPEED = 0.1


class _Views(NamedTuple):
    """How textures are looked at: (batch, 2) each, for the digit and for the background."""

    rows: Tensor
    turn: Tensor
    scale: Tensor
    place: Tensor


def textured_digits(
    bank: Pictures,
    textures: Pictures,
    batch: int,
    *,
    time: int = 1,
    size: int | None = None,
    magnify: int = 3,
    thicken: int = 2,
    scales: tuple[float, float] = (0.7, 1.4),
    seed: int | torch.Generator,
) -> Scenes:
    """Draw frames of a textured digit on a textured background, still or moving.

    The digit is magnified, binarised and thickened, and put anywhere. The two textures have
    different labels; each is turned by any angle, scaled and cut out anywhere, continued by
    reflection where it ends. With more than one step digit and texture move together, over a
    background that stands still.

    Args:
        bank: The digits, square pictures of one channel with labels.
        textures: The textures, square pictures of one channel with labels.
        batch: The number of sequences.
        time: The number of steps.
        size: The height and width of a frame; by default 8/7 of those of the magnified digit, 96
            for MNIST.
        magnify: The factor by which the digit is magnified.
        thicken: By how many pixels it is thickened.
        scales: The least and the greatest factor by which textures are magnified.
        seed: The seed of the random numbers, or a generator on the CPU.

    Returns:
        The sequences, (batch, time, 1, size, size), grey from 0 to 1. Segments are 1 for the digit
        and 2 for the background. ``info["textures"]``, long (batch, 2), are the labels of the
        textures of digit and background; ``info["rows"]``, long (batch,), the number of the digit
        in its bank.

    Raises:
        ValueError: If a number is out of its range, or a bank does not fit.

    Example:
        >>> digits = Pictures(torch.rand(3, 1, 8, 8), torch.arange(3))
        >>> scenes = textured_digits(digits, procedural_textures(size=64), 4, seed=0)
        >>> scenes.frames.shape, scenes.segments.unique().tolist()
        (torch.Size([4, 1, 1, 28, 28]), [1, 2])
    """
    _check(bank, textures, batch, time, magnify, thicken, scales)
    wide = magnify * bank.frames.shape[-1]
    size = -(-8 * wide // 7) if size is None else size
    if size < wide:
        raise ValueError(f"size: expected at least the {wide} pixels of a digit, got {size}.")
    generator = seeded(seed)
    _, rows = bank.sample((batch, 1), generator)
    chance = torch.rand(3, batch, 1, generator=generator, dtype=torch.float64)
    start, angle = chance[:2].movedim(0, -1) * (size - wide), 2 * math.pi * chance[2]
    velocity = SPEED * (size - wide) * torch.stack([angle.sin(), angle.cos()], -1)
    positions = moved(start, velocity, time, size - wide).round().long()
    views = _draw(textures, batch, scales, generator)
    digit = _magnified(bank.take(rows)[:, :, 0], magnify)
    mask = _thickened(placed(digit, positions, size), thicken)[:, :, 0]
    both = _look(textures, views, 2 * size - wide)
    figure = _windows(both[:, 0], size - wide - positions[:, :, 0], size)
    frames = torch.where(mask, figure, both[:, None, 1, :size, :size])
    segments = torch.where(mask, 1, 2)
    labels = torch.full_like(rows, -1) if bank.labels is None else bank.labels[rows]
    assert textures.labels is not None
    info = {"textures": textures.labels[views.rows], "rows": rows[:, 0]}
    return Scenes(Batch(frames[:, :, None]), labels, segments, positions, info).to(frames.device)


def _draw(
    textures: Pictures, batch: int, scales: tuple[float, float], generator: torch.Generator
) -> _Views:
    """Draw two textures of different labels for each frame, and how they are looked at."""
    assert textures.labels is not None
    first = torch.randint(len(textures.frames), (batch,), generator=generator)
    others = (textures.labels[:, None] != textures.labels).double()[first]
    second = torch.multinomial(others, 1, generator=generator)[:, 0]
    chance = torch.rand(4, batch, 2, generator=generator, dtype=torch.float64)
    scale = scales[0] + (scales[1] - scales[0]) * chance[1]
    place = chance[2:].movedim(0, -1) * (textures.frames.shape[-1] - 1)
    return _Views(torch.stack([first, second], 1), 2 * math.pi * chance[0], scale, place)


def _look(textures: Pictures, views: _Views, size: int) -> Tensor:
    """The textures turned, scaled and cut out, (batch, 2, size, size), between pixels by blend."""
    frames = textures.frames[:, 0]
    last = frames.shape[-1] - 1
    inner = torch.arange(size, dtype=torch.float64) - 0.5 * (size - 1)
    cosine, sine = (
        (wave(views.turn) / views.scale)[..., None, None] for wave in (torch.cos, torch.sin)
    )
    place = views.place[..., None, None, :]
    down = fold(place[..., 0] + cosine * inner[:, None] - sine * inner, last).to(frames.device)
    along = fold(place[..., 1] + sine * inner[:, None] + cosine * inner, last).to(frames.device)
    top, left = (each.floor().clamp(max=last - 1) for each in (down, along))
    lower, right = down - top, along - left
    number, top, left = views.rows.to(frames.device)[..., None, None], top.long(), left.long()
    corners = [
        grey(frames[number, top + row, left + column]) for row in (0, 1) for column in (0, 1)
    ]
    lower, right = lower.to(corners[0]), right.to(corners[0])
    above, below = (torch.lerp(one, two, right) for one, two in (corners[:2], corners[2:]))
    return torch.lerp(above, below, lower)


def _windows(pictures: Tensor, corners: Tensor, size: int) -> Tensor:
    """Cut squares out of pictures (batch, h, w) at corners (batch, time, 2)."""
    inner = torch.arange(size, device=pictures.device)
    down, along = (corners[..., axis, None].to(pictures.device) + inner for axis in (0, 1))
    number = torch.arange(len(pictures), device=pictures.device).view(-1, 1, 1, 1)
    return pictures[number, down[..., :, None], along[..., None, :]]


def _magnified(digits: Tensor, factor: int) -> Tensor:
    """Digits (batch, 1, height, width) magnified and binarised, bool."""
    larger = torch.nn.functional.interpolate(digits, scale_factor=factor, mode="bilinear")
    return larger > INK


def _thickened(mask: Tensor, by: int) -> Tensor:
    """Where a disc of that radius meets the mask, bool (batch, time, 1, size, size)."""
    if by == 0:
        return mask
    inner = torch.arange(-by, by + 1, device=mask.device)
    disc = (inner[:, None] ** 2 + inner**2 <= by**2).float()
    flat = mask.flatten(0, 1).float()
    met = torch.nn.functional.conv2d(flat, disc[None, None], padding=by)
    return (met > INK).view(mask.shape)


def _check(
    bank: Pictures,
    textures: Pictures,
    batch: int,
    time: int,
    magnify: int,
    thicken: int,
    scales: tuple[float, float],
) -> None:
    check_numbers(batch=batch, time=time, magnify=magnify)
    check_numbers(0, thicken=thicken)
    for name, pictures in (("bank", bank), ("textures", textures)):
        shape = tuple(pictures.frames.shape[1:])
        if len(shape) != 3 or shape[0] != 1 or shape[1] != shape[2] or shape[1] < 2:
            raise ValueError(
                f"{name}: expected square pictures (1, size, size), got frames of {shape}."
            )
    if textures.labels is None or len(textures.labels.unique()) < 2:
        raise ValueError("textures: expected labels of two kinds or more.")
    if not 0 < scales[0] <= scales[1]:
        raise ValueError(f"scales: expected two positive numbers in order, got {scales}.")


@register("datasets", "textured_digits")
def _dataset(sequences: int, *, time: int = 1, seed: int, data_dir: Path | None = None) -> Scenes:
    """Digits of scikit-learn of one procedural texture on another; see `textured_digits`."""
    bank, textures = load_small_digits("train"), procedural_textures(size=256)
    return textured_digits(bank, textures, sequences, time=time, seed=seed)
