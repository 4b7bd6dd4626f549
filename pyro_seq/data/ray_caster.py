r"""Views of a maze from within: random scenes, and a ray caster in NumPy that shows them.

A camera at :math:`p` that looks along the angle :math:`\theta` sends a ray through each column of
the picture, :math:`d = (\cos\theta, \sin\theta) + s\,(\sin\theta, -\cos\theta)` with s from
:math:`-\tan(\mathrm{fov}/2)` on the left to :math:`+\tan(\mathrm{fov}/2)` on the right. The ray
steps from cell to cell of the grid until it meets a wall at :math:`p + \lambda d`, and in the row
at slope v shows what lies there at the height :math:`c + \lambda v`, c that of the camera: floor
below 0, the wall up to its own height, and above it the skyline or the sky, both at infinity. Only
the first wall of a column is shown, also where a higher one stands behind it.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

__all__ = ["Scene", "render", "scene"]

Floats = NDArray[np.float32]

GRID = 7
WALLS = 0.45
TEXTURES = 6
TEXELS = 16
PAINTED = 0.6
FIELD = 0.42 * np.pi
SLOPE = float(np.tan(FIELD / 2))
SAMPLES = 2
FOG = 0.12
SIDE_LIGHT = 0.7


class Scene(NamedTuple):
    """A maze, its surroundings and the place of the camera.

    Attributes:
        cells: What stands in each cell, 0 for nothing, else 1 + the number of a texture, (7, 7).
        heights: The height of the wall of each cell, (7, 7).
        textures: The colours of the walls, (textures, 16, 16, 3), the lowest row first.
        buildings: The skyline, (buildings, 3): the azimuth of its middle, half its width, both in
            radians, and its slope above the horizon; the highest in a direction is seen.
        colours: Those of the floor, the sky and each building, (2 + buildings, 3).
        camera: The place of the camera, x, y and its height.
    """

    cells: NDArray[np.int64]
    heights: Floats
    textures: Floats
    buildings: Floats
    colours: Floats
    camera: Floats


def scene(stream: np.random.Generator, *, pillars: int = 0) -> Scene:
    """Draw a scene.

    Args:
        stream: The source of random numbers.
        pillars: The number of pillars about the camera, at most 4, each with its own texture.

    Returns:
        A maze of 7 by 7 cells, closed, 45 of 100 inner cells walls, the 3 by 3 cells about the
        camera free but for pillars; 6 textures of walls, a skyline of 3 to 7 buildings.

    Raises:
        ValueError: If the number of pillars is out of its range.
    """
    if not 0 <= pillars <= 4:
        raise ValueError(f"pillars: expected from 0 to 4, got {pillars}.")
    middle = GRID // 2
    around = np.arange(GRID) - middle
    ring = np.maximum(np.abs(around)[:, None], np.abs(around))
    wall = (ring == middle) | ((ring == 2) & (stream.random((GRID, GRID)) < WALLS))
    cells = np.where(wall, stream.integers(1, TEXTURES + 1, (GRID, GRID)), 0)
    heights = stream.uniform(1.0, 2.2, (GRID, GRID))
    corners = stream.permutation([(-1, -1), (-1, 1), (1, -1), (1, 1)])[:pillars] + middle
    cells[corners[:, 0], corners[:, 1]] = 1 + TEXTURES + np.arange(pillars)
    count = int(stream.integers(3, 8))
    buildings = np.stack(
        [
            stream.uniform(0.0, 2 * np.pi, count),
            stream.uniform(0.08, 0.3, count),
            stream.uniform(0.3, 0.75, count),
        ],
        axis=1,
    )
    camera = np.array([*(middle + stream.uniform(0.2, 0.8, 2)), stream.uniform(0.5, 0.8)])
    return Scene(
        cells,
        heights.astype(np.float32),
        np.stack([_texture(stream) for _ in range(TEXTURES + pillars)]),
        buildings.astype(np.float32),
        _colours(stream, 2 + count),
        camera.astype(np.float32),
    )


def _colours(stream: np.random.Generator, *shape: int) -> Floats:
    """Draw colours, (*shape, 3), none of them very dark or very bright."""
    return stream.uniform(0.15, 0.85, (*shape, 3)).astype(np.float32)


def _texture(stream: np.random.Generator) -> Floats:
    """Draw stripes, bricks, checks or blocks, most of them with a framed painting."""
    row, column = np.indices((TEXELS, TEXELS))
    width = int(stream.choice([2, 4, 8]))
    kind = stream.choice(["stripes", "bricks", "checks", "blocks"])
    if kind == "stripes":
        picked = (column if stream.random() < 0.5 else row) // width % 2
    elif kind == "bricks":
        picked = ((row % 4 == 0) | ((column + row // 4 % 2 * 4) % 8 == 0)).astype(np.int64)
    elif kind == "checks":
        picked = (row // width + column // width) % 2
    else:
        picked = row // 4 * 4 + column // 4
    texture = _colours(stream, 16)[picked]
    if stream.random() < PAINTED:
        low, high = int(stream.integers(2, 4)), TEXELS - int(stream.integers(2, 4))
        texture[low:high, low:high] = _colours(stream)
        inner = slice(low + 1, high - 1)
        row, column = np.indices((high - low - 2, high - low - 2)) // 4
        texture[inner, inner] = _colours(stream, 3, 3)[row, column]
    return texture


def render(place: Scene, angles: NDArray[np.floating], *, size: int = 32) -> NDArray[np.uint8]:
    """Show a scene in several directions.

    Args:
        place: The scene.
        angles: The directions in radians, (views,); they grow to the left.
        size: The height and width of the pictures, each pixel the mean of 2 by 2 samples.

    Returns:
        The pictures, (views, 3, size, size).

    Example:
        >>> place = scene(np.random.default_rng(0))
        >>> render(place, np.linspace(0.0, np.pi, 5)).shape
        (5, 3, 32, 32)
    """
    across = size * SAMPLES
    slopes = ((2 * np.arange(across) + 1) / across - 1) * SLOPE
    angles = np.asarray(angles, dtype=np.float64)[:, None]
    ray = np.stack(
        [np.cos(angles) + slopes * np.sin(angles), np.sin(angles) - slopes * np.cos(angles)]
    )
    hits = _cast(place, ray)
    slope, building = _skyline(place, angles - np.arctan(slopes), ray)
    palette, floor = _palette(place, across)
    up = -slopes[:, None].astype(np.float32)
    texel = hits.base[:, None] + up * hits.rise[:, None]
    rows = np.arange(floor, floor + across, dtype=np.int32)[:, None]
    number = np.where(up < slope[:, None], building[:, None] + floor + 2 * across, rows + across)
    wall = texel < TEXELS
    np.copyto(number, texel.astype(np.int32) * TEXELS + hits.column[:, None], where=wall)
    ground = texel < 0.0
    np.copyto(number, rows, where=ground)
    light = np.where(wall & ~ground, hits.light[:, None], np.float32(1.0))
    return np.stack([_reduce(colour.take(number) * light) for colour in palette], axis=1)


class _Hits(NamedTuple):
    """What rays meet, each (views, columns).

    The number of the lowest texel of the column of the texture, the light, and the height on the
    texture, in texels: `base` at the horizon, and `rise` more for each unit of slope.
    """

    column: NDArray[np.int32]
    light: Floats
    base: Floats
    rise: Floats


def _cast(place: Scene, ray: NDArray[np.float64]) -> _Hits:
    """Follow rays (2, views, columns) from cell to cell until each is in a wall."""
    start = place.camera[:2].astype(np.float64)[:, None, None]
    ray = np.where(np.abs(ray) < 1e-9, 1e-9, ray)
    sign = np.sign(ray).astype(np.int64)
    step = np.abs(1.0 / ray)
    cell = np.broadcast_to(np.floor(start), ray.shape).astype(np.int64)
    reach = (cell + (sign > 0) - start) / ray
    depth = np.zeros(ray.shape[1:])
    sideways = np.zeros(ray.shape[1:], dtype=bool)
    for _ in range(2 * GRID):
        free = place.cells[cell[0], cell[1]] == 0
        if not free.any():
            break
        first = reach[0] < reach[1]
        depth = np.where(free, np.where(first, reach[0], reach[1]), depth)
        sideways = np.where(free, first, sideways)
        moves = np.stack([free & first, free & ~first])
        cell += np.where(moves, sign, 0)
        reach += np.where(moves, step, 0.0)
    met = start + depth * ray
    along = np.where(sideways, met[1], met[0]) % 1.0
    texture = place.cells[cell[0], cell[1]] - 1
    column = texture * TEXELS**2 + np.minimum((along * TEXELS).astype(np.int64), TEXELS - 1)
    light = np.where(sideways, 1.0, SIDE_LIGHT) / (1.0 + FOG * depth)
    scale = TEXELS / place.heights[cell[0], cell[1]]
    return _Hits(
        column.astype(np.int32),
        light.astype(np.float32),
        place.camera[2] * scale,
        (depth * scale).astype(np.float32),
    )


def _skyline(
    place: Scene, azimuth: NDArray[np.float64], ray: NDArray[np.float64]
) -> tuple[Floats, NDArray[np.int32]]:
    """Return the slope that the skyline reaches and the building there, each (views, columns)."""
    slope = np.zeros(azimuth.shape)
    colour = np.zeros(azimuth.shape, dtype=np.int32)
    for number, (middle, half, top) in enumerate(place.buildings):
        away = np.abs((azimuth - middle + np.pi) % (2 * np.pi) - np.pi)
        seen = (away < half) & (top > slope)
        slope[seen], colour[seen] = top, number
    return (slope * np.sqrt((ray * ray).sum(0))).astype(np.float32), colour


def _palette(place: Scene, across: int) -> tuple[Floats, int]:
    """Return all colours, (3, colours), and where the floor begins.

    They are those of the texels, then of the rows of the floor and of the sky, darker towards the
    horizon, from the top of the picture on, and then of the buildings.
    """
    texels = place.textures.reshape(-1, 3)
    fade = 0.6 + 0.4 * np.abs(np.linspace(-1.0, 1.0, across, dtype=np.float32))[:, None]
    floor, sky = fade * place.colours[0], fade * place.colours[1]
    colours = np.concatenate([texels, floor, sky, place.colours[2:]])
    return np.ascontiguousarray(colours.T), len(texels)


def _reduce(samples: Floats) -> NDArray[np.uint8]:
    """Average samples (views, rows, columns) to pixels of bytes (views, height, width)."""
    rows = samples[:, ::2] + samples[:, 1::2]
    pixels = (rows[:, :, ::2] + rows[:, :, 1::2]) * np.float32(255 / SAMPLES**2)
    return np.rint(pixels).astype(np.uint8)
