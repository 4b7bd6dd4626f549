"""Drawing of the simulated environments: a y-up plane of 32 by 32 units, one pixel per unit.

A point (x, y) lies in column ``int(x)`` and row ``32 - int(y)``, as in the release of the KVAE paper.
Pixels outside the picture are left out.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["HEIGHT", "draw_balls", "draw_paddles", "draw_walls"]

HEIGHT = 32

_BALL_ROWS = ((-3, 1), (-2, 2), (-1, 3), (0, 3), (1, 2), (2, 1))
_BALL = np.array(
    [(row, column) for row, half in _BALL_ROWS for column in range(-half, half)] + [(0, 3)]
)


def draw_balls(frames: NDArray[np.uint8], position: NDArray[np.float64]) -> None:
    """Draw a ball of radius 3 into each frame: a disc of 24 pixels and the end of its orientation line.

    Args:
        frames: The frames (sequences, time, 32, 32), written in place.
        position: The centres (sequences, time, 2), as (x, y).
    """
    rows, columns = _pixel(position)
    _scatter(frames, rows[..., None] + _BALL[:, 0], columns[..., None] + _BALL[:, 1])


def draw_walls(frames: NDArray[np.uint8], walls: NDArray[np.float64]) -> None:
    """Draw walls one pixel thick, the same into every frame.

    Args:
        frames: The frames (sequences, time, 32, 32), written in place.
        walls: The ends of each wall (walls, 2, 2), as (x, y).
    """
    picture = np.zeros((1, 1, HEIGHT, HEIGHT), dtype=np.uint8)
    for start, end in walls:
        rows, columns = _line(*_pixel(start), *_pixel(end))
        _scatter(picture, rows[None, None], columns[None, None])
    np.maximum(frames, picture, out=frames)


def draw_paddles(frames: NDArray[np.uint8], paddles: NDArray[np.float64]) -> None:
    """Draw vertical paddles two pixels thick.

    Args:
        frames: The frames (sequences, time, 32, 32), written in place.
        paddles: The ends of each paddle (sequences, time, paddles, 2, 2), top then bottom, as (x, y).
    """
    length = int(paddles[0, 0, 0, 0, 1] - paddles[0, 0, 0, 1, 1]) + 1
    top, columns = _pixel(paddles[..., 0, :])
    rows = top[..., None, None] + np.arange(length)[:, None] + np.zeros(2, dtype=np.int64)
    columns = columns[..., None, None] + np.zeros((length, 1), dtype=np.int64) + np.arange(-1, 1)
    shape = (*paddles.shape[:2], -1)
    _scatter(frames, rows.reshape(shape), columns.reshape(shape))


def _pixel(point: NDArray[np.float64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the row and the column of the points (..., 2), each (...)."""
    whole = point.astype(np.int64)
    return HEIGHT - whole[..., 1], whole[..., 0]


def _scatter(
    frames: NDArray[np.uint8], rows: NDArray[np.int64], columns: NDArray[np.int64]
) -> None:
    """Set the pixels (sequences, time, pixels) of each frame to one."""
    sequence, time = np.indices(frames.shape[:2])
    inside = (rows >= 0) & (rows < HEIGHT) & (columns >= 0) & (columns < HEIGHT)
    sequence, time, rows, columns = np.broadcast_arrays(
        sequence[..., None], time[..., None], rows, columns
    )
    frames[sequence[inside], time[inside], rows[inside], columns[inside]] = 1


def _line(
    row: NDArray[np.int64],
    column: NDArray[np.int64],
    last_row: NDArray[np.int64],
    last_column: NDArray[np.int64],
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the pixels of Bresenham's line between two pixels, each end included."""
    row, column, last_row, last_column = (
        int(value) for value in (row, column, last_row, last_column)
    )
    down, right = abs(last_row - row), abs(last_column - column)
    row_step, column_step = np.sign(last_row - row), np.sign(last_column - column)
    error, pixels = right - down, [(row, column)]
    while (row, column) != (last_row, last_column):
        twice = 2 * error
        if twice > -down:
            error, column = error - down, column + column_step
        if twice < right:
            error, row = error + right, row + row_step
        pixels.append((row, column))
    rows, columns = np.array(pixels, dtype=np.int64).T
    return rows, columns
