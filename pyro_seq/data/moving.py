r"""Objects that move over each other: digits, and outlines of squares and triangles.

Objects are drawn over one another, so that their pixels are grouped by how they look and move, not
by where they are alone. The module `scenes` says how they move and are put together.

References:
    N. Srivastava, E. Mansimov, R. Salakhutdinov (2015). Unsupervised Learning of Video
    Representations using LSTMs. https://arxiv.org/abs/1502.04681
    D. P. Reichert, T. Serre (2014). Neuronal Synchrony in Complex-Valued Deep Networks.
    https://arxiv.org/abs/1312.6115
    K. Greff, A. Rasmus, M. Berglund, T. H. Hao, J. Schmidhuber, H. Valpola (2016). Tagger: Deep
    Unsupervised Perceptual Grouping. https://arxiv.org/abs/1606.06724
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

import torch
from torch import Tensor

from pyro_seq.data.arguments import check_numbers
from pyro_seq.data.batch import Batch
from pyro_seq.data.pictures import Pictures, seeded
from pyro_seq.data.scenes import Scenes, moved, placed, segment
from pyro_seq.plugins import register

__all__ = ["SHAPES", "ShapeSet", "moving_digits", "moving_shapes"]

INK = 0.1
SPEED = 0.1
_STEPS = torch.tensor([(r, c) for r in (-1, 0, 1) for c in (-1, 0, 1) if (r, c) != (0, 0)])


def moving_digits(
    bank: Pictures,
    batch: int,
    *,
    digits: int = 2,
    time: int = 20,
    size: int = 64,
    speed: float | None = None,
    seed: int | torch.Generator,
) -> Scenes:
    """Draw sequences of digits that move over each other: Moving MNIST.

    Each digit begins anywhere, moves in a direction of its own and is reflected at the edges. The
    brighter one shows.

    Args:
        bank: The digits, pictures of one channel.
        batch: The number of sequences.
        digits: The number of digits.
        time: The number of steps.
        size: The height and width of a frame.
        speed: Pixels per step; by default a tenth of the room that a digit has.
        seed: The seed of the random numbers, or a generator on the CPU.

    Returns:
        The sequences, (batch, time, 1, size, size), grey from 0 to 1. A digit has the pixels where
        it is brighter than 0.1. ``info["rows"]``, long (batch, digits), are the numbers of the
        pictures in the bank; ``info["velocity"]``, (batch, digits, 2), the first velocities.

    Raises:
        ValueError: If a number is out of its range, or a digit does not fit into the frame.

    Example:
        >>> bank = Pictures(torch.rand(3, 1, 8, 8), torch.arange(3))
        >>> scenes = moving_digits(bank, 4, time=6, size=20, seed=0)
        >>> scenes.frames.shape, scenes.segments.shape
        (torch.Size([4, 6, 1, 20, 20]), torch.Size([4, 6, 20, 20]))
    """
    check_numbers(batch=batch, time=time, digits=digits)
    shape = tuple(bank.frames.shape[1:])
    if len(shape) != 3 or shape[0] != 1:
        raise ValueError(f"bank: expected pictures (1, height, width), got frames of {shape}.")
    room = torch.tensor([size - shape[1], size - shape[2]], dtype=torch.float64)
    if bool((room < 0).any()):
        raise ValueError(f"size: expected at least that of a digit, {shape[1:]}, got {size}.")
    generator = seeded(seed)
    _, rows = bank.sample((batch, digits), generator)
    chance = torch.rand(3, batch, digits, generator=generator, dtype=torch.float64)
    start, angle = chance[:2].movedim(0, -1) * room, 2 * math.pi * chance[2]
    pace = SPEED * float(room.mean()) if speed is None else speed
    velocity = pace * torch.stack([angle.sin(), angle.cos()], -1)
    positions = moved(start, velocity, time, room).round().long()
    layers = placed(bank.take(rows)[:, :, 0], positions, size)
    labels = torch.full_like(rows, -1) if bank.labels is None else bank.labels[rows]
    return _joined(layers, labels, positions, {"rows": rows, "velocity": velocity}, INK)


class ShapeSet(NamedTuple):
    """Binary outlines and the frames that show them.

    Attributes:
        outlines: The pictures, one for each class, bool (height, width) each.
        objects: How many are in a frame.
        size: The height and width of a frame.
    """

    outlines: tuple[Tensor, ...]
    objects: int
    size: int


def _ring(size: int, thickness: int) -> Tensor:
    """The outline of a square, bool (size, size)."""
    inner = torch.arange(size)
    edge = torch.minimum(inner, size - 1 - inner) < thickness
    return edge[:, None] | edge


def _triangle(height: int, hole: int, foot: int, tip: int) -> Tensor:
    """The outline of a triangle with a right angle at its tip, bool (height, width).

    Args:
        height: Number of rows.
        hole: How many rows the hole lies below the tip.
        foot: How many of the last rows are whole.
        tip: Width of the first row, 1 or 2.
    """
    widest = height - foot
    rows = torch.arange(height)[:, None]
    middle = widest + 0.5 * (tip - 1)
    apart = (torch.arange(2 * widest + tip) - middle).abs() - 0.5 * (tip - 1)
    inside, hollow = apart <= rows.clamp(max=widest), (apart <= rows - hole) & (rows < widest + 1)
    return inside & ~(hollow & (rows < height - foot))


def _kinds(square: Tensor, triangle: Tensor) -> tuple[Tensor, ...]:
    return square, triangle, triangle.flip(0)


SHAPES: Mapping[str, ShapeSet] = MappingProxyType(
    {
        "squares12": ShapeSet((_ring(5, 1),), 2, 12),
        "shapes12": ShapeSet(_kinds(_ring(5, 1), _triangle(4, 1, 1, 1)), 2, 12),
        "shapes20": ShapeSet(_kinds(_ring(7, 2), _triangle(7, 3, 2, 2)), 3, 20),
    }
)
"""Sets of outlines: two squares, two of three kinds, and Tagger's Shapes."""


def moving_shapes(name: str, batch: int, *, time: int = 1, seed: int | torch.Generator) -> Scenes:
    """Draw binary frames of outlines that lie over each other, still or moving.

    ========= ================================================== ============
    name      objects                                            frame
    ========= ================================================== ============
    squares12 two squares, 5 by 5 pixels                         12 by 12
    shapes12  two: squares, triangles on their foot or their tip 12 by 12
    shapes20  three of the same kinds, twice as thick: Tagger's  20 by 20
    ========= ================================================== ============

    An object is of any kind and at any place with the same probability. With more than one step it
    moves by a pixel per step, straight or diagonally, and is reflected at the edges.

    Args:
        name: One of `SHAPES`.
        batch: The number of sequences.
        time: The number of steps.
        seed: The seed of the random numbers, or a generator on the CPU.

    Returns:
        The sequences, (batch, time, 1, size, size), of zeros and ones; the labels are the kinds.
        ``info["velocity"]``, long (batch, objects, 2), are the first velocities.

    Raises:
        ValueError: If the name is unknown, or a number is not positive.

    Example:
        >>> scenes = moving_shapes("squares12", 4, seed=0)
        >>> scenes.frames.shape, scenes.segments.unique().tolist()
        (torch.Size([4, 1, 1, 12, 12]), [-1, 0, 1, 2])
    """
    if name not in SHAPES:
        raise ValueError(f"name: expected one of {', '.join(SHAPES)}, got {name!r}.")
    check_numbers(batch=batch, time=time)
    kinds, objects, size = SHAPES[name]
    generator = seeded(seed)
    labels = torch.randint(len(kinds), (batch, objects), generator=generator)
    extent = torch.tensor([kind.shape for kind in kinds])[labels]
    room = size - extent
    chance = torch.rand(batch, objects, 2, generator=generator, dtype=torch.float64)
    start = (chance * (room + 1)).long()
    velocity = _STEPS[torch.randint(len(_STEPS), (batch, objects), generator=generator)]
    positions = moved(start, velocity, time, room)
    layers = placed(_padded(kinds)[labels], positions, size)
    return _joined(layers, labels, positions, {"velocity": velocity})


def _padded(pictures: tuple[Tensor, ...]) -> Tensor:
    """Pictures on zeros of one size, floats (pictures, height, width)."""
    height, width = (max(each.shape[axis] for each in pictures) for axis in (0, 1))
    whole = torch.zeros(len(pictures), height, width)
    for number, each in enumerate(pictures):
        whole[number, : each.shape[0], : each.shape[1]] = each
    return whole.to(torch.get_default_dtype())


def _joined(
    layers: Tensor,
    labels: Tensor,
    positions: Tensor,
    info: dict[str, Tensor],
    threshold: float = 0.0,
) -> Scenes:
    """Scenes of layers (batch, time, objects, height, width), the brightest of which show."""
    batch = Batch(layers.amax(2, keepdim=True))
    scenes = Scenes(batch, labels, segment(layers, threshold), positions, info)
    return scenes.to(layers.device)


def _register(name: str, shapes: str) -> None:
    def dataset(
        sequences: int, *, time: int = 8, seed: int, data_dir: Path | None = None
    ) -> Scenes:
        return moving_shapes(shapes, sequences, time=time, seed=seed)

    dataset.__doc__ = f"Moving outlines of the set {shapes!r}; see `moving_shapes`."
    register("datasets", name)(dataset)


for _name in SHAPES:
    _register(f"moving_{_name}", _name)
