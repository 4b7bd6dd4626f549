r"""Scenes of moving objects whose pixels are known to belong to them.

.. math::
    x_{t,p} = \max_k o_{k,\, p - r_{k,t}}, \qquad
    r_{k,t} = \mathrm{fold}(r_{k,0} + t\, v_k)

where fold reflects at 0 and at the last place that an object of picture :math:`o_k` fits into.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from pyro_seq.data.batch import Batch

__all__ = ["Scenes", "fold", "moved", "placed", "segment"]


class Scenes(NamedTuple):
    """A batch of sequences of objects, and what is known of them.

    Attributes:
        batch: The sequences, in the order of the arguments of every model.
        labels: The class of each object, long (batch, objects); -1 where it has none.
        segments: Whose pixel each is, long (batch, time, height, width): from 1 on where it
            belongs to one object alone; 0 where to none; -1 where to several. Groupings are judged
            on the positive ones.
        positions: Row and column of the upper left corner of each object, rounded,
            long (batch, time, objects, 2).
        info: What else is known, by name.
    """

    batch: Batch
    labels: Tensor
    segments: Tensor
    positions: Tensor
    info: dict[str, Tensor]

    @property
    def frames(self) -> Tensor:
        """The frames, (batch, time, channels, height, width)."""
        return self.batch.x

    def to(self, device: torch.device | str) -> Scenes:
        """Return all tensors on another device."""
        labels, segments, positions = (part.to(device) for part in self[1:4])
        info = {name: part.to(device) for name, part in self.info.items()}
        return Scenes(self.batch.to(device), labels, segments, positions, info)


def fold(x: Tensor, high: Tensor | float) -> Tensor:
    """Reflect numbers at 0 and at `high` until they lie between; the numbers of a triangle wave.

    Args:
        x: Numbers of any shape.
        high: The upper end, not negative; it broadcasts.
    """
    high = torch.as_tensor(high, dtype=x.dtype, device=x.device)
    room = torch.where(high > 0, high, torch.ones_like(high))
    x = torch.where(high > 0, x.remainder(2 * room), torch.zeros_like(x))
    return torch.where(x > high, 2 * high - x, x)


def moved(start: Tensor, velocity: Tensor, time: int, high: Tensor | float) -> Tensor:
    """Positions of objects that move straight on and are reflected, at every step.

    Args:
        start: First positions, (batch, objects, 2).
        velocity: Change per step, of the same shape.
        time: The number of steps.
        high: The greatest position; it broadcasts to (batch, objects, 2).

    Returns:
        The positions, (batch, time, objects, 2).
    """
    steps = torch.arange(time)[:, None, None]
    high = torch.as_tensor(high, dtype=start.dtype)
    high = high.expand(start.shape)[:, None]
    return fold(start[:, None] + steps * velocity[:, None], high)


def placed(pictures: Tensor, positions: Tensor, size: int) -> Tensor:
    """Pictures put into square frames of zeros, each into one of its own.

    Args:
        pictures: (batch, objects, height, width).
        positions: Row and column of the upper left corner, long (batch, time, objects, 2). What
            lies outside the frame is cut off.
        size: The height and width of a frame.

    Returns:
        The layers, (batch, time, objects, size, size), on the device of the pictures.
    """
    batch, objects = pictures.shape[:2]
    inner = torch.arange(size, device=pictures.device)
    places = positions.to(pictures.device)[..., None]
    rows, columns = (inner - places[:, :, :, axis] for axis in (0, 1))
    height, width = pictures.shape[2:]
    inside = ((rows >= 0) & (rows < height))[..., :, None] & ((columns >= 0) & (columns < width))[
        ..., None, :
    ]
    number = torch.arange(batch, device=pictures.device).view(-1, 1, 1, 1, 1)
    which = torch.arange(objects, device=pictures.device).view(1, 1, -1, 1, 1)
    rows, columns = rows.clamp(0, height - 1), columns.clamp(0, width - 1)
    layers = pictures[number, which, rows[..., :, None], columns[..., None, :]]
    return torch.where(inside, layers, torch.zeros_like(layers))


def segment(layers: Tensor, threshold: float = 0.0) -> Tensor:
    """Whose pixel each is, long (batch, time, height, width).

    Args:
        layers: The objects, each by itself, (batch, time, objects, height, width).
        threshold: An object has a pixel where it is brighter than this.

    Returns:
        The number of the object from 1 on, 0 for none, -1 for several.
    """
    inked = layers > threshold
    count = inked.sum(2)
    first = inked.byte().argmax(2) + 1
    return torch.where(count == 1, first, torch.where(count == 0, 0, -1))
