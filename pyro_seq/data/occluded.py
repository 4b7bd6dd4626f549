r"""Digits that move behind bars: Occluded Moving MNIST.

.. math::
    x_t = b \odot \mathrm{place}(o, r_t), \qquad
    \hat x = \mathrm{place}\Big(o \odot \max_t \mathrm{cut}(b, r_t),\, r_T\Big)

A digit o moves with a knight's move per step, (1, 2) or (2, 1) in any direction, and is reflected
at the edges; bars, where b is 0, hide a part of it at every step. The optimal reconstruction
:math:`\hat x` shows all of the digit that was seen at some step: the most that can be known of it.

References:
    I. Prémont-Schwarz, A. Ilin, T. H. Hao, A. Rasmus, R. Boney, H. Valpola (2017). Recurrent
    Ladder Networks. https://arxiv.org/abs/1707.09219
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from pyro_seq.data.arguments import check_numbers
from pyro_seq.data.batch import Batch
from pyro_seq.data.pictures import Pictures, load_small_digits, seeded
from pyro_seq.data.scenes import Scenes, moved, placed, segment
from pyro_seq.plugins import register

__all__ = ["occluded_digits", "occluder"]

_MOVES = torch.tensor(
    [(a * r, b * c) for a, b in ((1, 2), (2, 1)) for r in (-1, 1) for c in (-1, 1)]
)


def occluder(size: int) -> Tensor:
    """What the bars leave to see, bool (size, size): two bars across and two down.

    Of each 8 units of height and width, the third and the sixth are hidden.

    Args:
        size: The height and width of the frame, a multiple of 8.

    Raises:
        ValueError: If it is none.

    Example:
        >>> occluder(8)[0].int().tolist(), occluder(16).float().mean()
        ([1, 1, 0, 1, 1, 0, 1, 1], tensor(0.5625))
    """
    if size < 8 or size % 8:
        raise ValueError(f"size: expected a multiple of 8 pixels, got {size}.")
    unit = torch.arange(size) // (size // 8)
    open_line = (unit != 2) & (unit != 5)
    return open_line[:, None] & open_line


def occluded_digits(
    bank: Pictures,
    batch: int,
    *,
    time: int = 5,
    size: int | None = None,
    seed: int | torch.Generator,
) -> Scenes:
    """Draw sequences of digits that move behind bars.

    With ``load_digits("train", size=14)`` these are the frames of the paper, 32 by 32 pixels; with
    ``load_small_digits("train")`` frames of 16 by 16 of the same proportions. Frames are grey,
    from 0, the background and the bars, to 1.

    Args:
        bank: The digits, square pictures of one channel with labels.
        batch: The number of sequences.
        time: The number of steps.
        size: The height and width of a frame; by default the least multiple of 8 that is twice
            that of a digit.
        seed: The seed of the random numbers, or a generator on the CPU.

    Returns:
        The sequences, (batch, time, 1, size, size). ``labels[:, 0]`` are the digits.
        ``info["reconstruction"]``, (batch, 1, size, size), is the optimal reconstruction, at the
        last position and without bars; ``info["seen"]``, bool (batch, height, width), what was
        seen of the picture of the digit; ``info["rows"]``, long (batch,), the number of the
        picture in the bank.

    Raises:
        ValueError: If a number is out of its range, or the bank does not fit.

    Example:
        >>> bank = Pictures(torch.rand(3, 1, 8, 8), torch.arange(3))
        >>> scenes = occluded_digits(bank, 4, seed=0)
        >>> scenes.frames.shape, scenes.info["reconstruction"].shape
        (torch.Size([4, 5, 1, 16, 16]), torch.Size([4, 1, 16, 16]))
    """
    digit = _check(bank, batch, time)
    size = 8 * -(-2 * digit // 8) if size is None else size
    visible = occluder(size)
    if size < digit:
        raise ValueError(f"size: expected at least the {digit} pixels of a digit, got {size}.")
    generator = seeded(seed)
    _, rows = bank.sample((batch, 1), generator)
    start = torch.randint(size - digit + 1, (batch, 1, 2), generator=generator)
    velocity = _MOVES[torch.randint(len(_MOVES), (batch, 1), generator=generator)]
    positions = moved(start, velocity, time, size - digit)
    pictures = bank.take(rows)[:, :, 0]
    layers = placed(pictures, positions, size) * visible.to(pictures.device)
    seen = _seen(visible, positions[:, :, 0], digit).to(pictures.device)
    whole = placed(pictures * seen[:, None], positions[:, -1:], size)[:, 0]
    labels = torch.full_like(rows, -1) if bank.labels is None else bank.labels[rows]
    info = {"reconstruction": whole, "seen": seen, "rows": rows[:, 0]}
    scenes = Scenes(Batch(layers), labels, segment(layers), positions, info)
    return scenes.to(pictures.device)


def _seen(visible: Tensor, positions: Tensor, digit: int) -> Tensor:
    """Which pixels of the digit were in the open at some step, bool (batch, digit, digit)."""
    inner = torch.arange(digit)
    rows, columns = (positions[..., axis, None] + inner for axis in (0, 1))
    return visible[rows[..., :, None], columns[..., None, :]].any(1)


def _check(bank: Pictures, batch: int, time: int) -> int:
    """Return the height of a digit, or raise."""
    check_numbers(batch=batch, time=time)
    shape = tuple(bank.frames.shape[1:])
    if len(shape) != 3 or shape[0] != 1 or shape[1] != shape[2]:
        raise ValueError(f"bank: expected square pictures (1, size, size), got frames of {shape}.")
    return shape[1]


@register("datasets", "occluded_digits")
def _dataset(sequences: int, *, time: int = 5, seed: int, data_dir: Path | None = None) -> Scenes:
    """Digits of scikit-learn, 8 by 8 pixels, that move behind bars; see `occluded_digits`."""
    return occluded_digits(load_small_digits("train"), sequences, time=time, seed=seed)
