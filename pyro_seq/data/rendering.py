"""Drawing of the simulated environments: a y-up plane of 32 by 32 units, one pixel per unit.

A point (x, y) lies in column ``int(x)`` and row ``32 - int(y)``, as in the release of the KVAE
paper; the shapes have the pixels that pygame 2 gives them. Pixels outside the picture are lost.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["BALL", "HEIGHT", "PADDLE", "draw", "draw_walls"]

HEIGHT = 32

_BALL_ROWS = ((-3, 1), (-2, 2), (-1, 3), (0, 3), (1, 2), (2, 1))
BALL = np.array(
    [(row, column) for row, half in _BALL_ROWS for column in range(-half, half)] + [(0, 3)]
)
"""A ball of radius 3 as (row, column) from its centre: a disc, and its orientation line's end."""

PADDLE = np.array([(row, column) for row in range(7) for column in range(2)])
"""A paddle of length 6 and radius 1 as (row, column) from its top end."""


def draw(
    frames: NDArray[np.uint8], position: NDArray[np.float64], shape: NDArray[np.int64]
) -> None:
    """Draw one shape into each frame.

    Args:
        frames: The frames (sequences, time, 32, 32), written in place.
        position: Where the shape's origin lies in each frame (sequences, time, 2), as (x, y).
        shape: The shape's pixels as (row, column) from its origin (pixels, 2).
    """
    rows, columns = np.moveaxis(_pixel(position)[..., None, :] + shape, -1, 0)
    inside = (rows >= 0) & (rows < HEIGHT) & (columns >= 0) & (columns < HEIGHT)
    sequence, time, pixel = np.nonzero(inside)
    frames[sequence, time, rows[inside], columns[inside]] = 1


def draw_walls(frames: NDArray[np.uint8], walls: NDArray[np.float64]) -> None:
    """Draw walls one pixel thick, the same into every frame.

    Args:
        frames: The frames (sequences, time, 32, 32), written in place.
        walls: The ends of each wall (walls, 2, 2), as (x, y).
    """
    pixels = np.concatenate([_line(_pixel(start), _pixel(end)) for start, end in walls])
    rows, columns = pixels[((pixels >= 0) & (pixels < HEIGHT)).all(axis=1)].T
    frames[:, :, rows, columns] = 1


def _pixel(point: NDArray[np.float64]) -> NDArray[np.int64]:
    """Return the (row, column) of each point (x, y), both (..., 2)."""
    whole = point.astype(np.int64)
    return np.stack([HEIGHT - whole[..., 1], whole[..., 0]], axis=-1)


def _line(start: NDArray[np.int64], end: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the (row, column) of Bresenham's line between two pixels, each end included."""
    (row, column), (last_row, last_column) = start.tolist(), end.tolist()
    down, right = abs(last_row - row), abs(last_column - column)
    row_step = 1 if last_row > row else -1
    column_step = 1 if last_column > column else -1
    error, pixels = right - down, [(row, column)]
    while (row, column) != (last_row, last_column):
        twice = 2 * error
        if twice > -down:
            error, column = error - down, column + column_step
        if twice < right:
            error, row = error + right, row + row_step
        pixels.append((row, column))
    return np.array(pixels)
