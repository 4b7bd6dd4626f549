r"""A camera that turns on its place in a random maze, at first slowly.

The direction at step t, counted from 0, is

.. math::
    \theta_t = \theta_0 + 2 \pi c\, \frac{a(t)}{a(P)}, \qquad
    a(t) = t - \tau \left(1 - e^{-t / \tau}\right)

with :math:`\tau \sim U(2, 5)` steps of acceleration from rest, a period of P = 15 steps for the
first turn, up to :math:`c \sim U(0.98, 1.02)`, and a random :math:`\theta_0`. Steps grow from
about 4 to 33 degrees, so the second turn shows views between those of the first, none of them
again.

References:
    M. Gemici, C.-C. Hung, A. Santoro, G. Wayne, S. Mohamed, D. J. Rezende, D. Amos, T. Lillicrap
    (2017). Generative Temporal Models with Memory. https://arxiv.org/abs/1702.04649
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pyro_seq.data.arguments import check_numbers
from pyro_seq.data.batch import Batch
from pyro_seq.data.pictures import Pictures, seeded
from pyro_seq.data.ray_caster import render, scene
from pyro_seq.data.recall_tasks import Recall
from pyro_seq.plugins import register

__all__ = ["Rotations", "render_rotations", "rotation"]

PERIOD = 15
ACCELERATION = (2.0, 5.0)
SPREAD = 0.02
CACHE_VERSION = 1


class Rotations(NamedTuple):
    """Rendered turns in scenes, of which batches are made.

    Attributes:
        frames: The pictures, uint8 (scenes, time, 3, height, width), on any device.
        angles: The direction of each in radians, not wrapped, double (scenes, time), on the CPU.
    """

    frames: Tensor
    angles: Tensor

    def to(self, device: torch.device | str) -> Rotations:
        """Return the turns with their frames on another device; the angles stay on the CPU."""
        return self._replace(frames=self.frames.to(device))


def render_rotations(
    scenes: int,
    *,
    time: int = 30,
    pillars: int = 0,
    size: int = 32,
    seed: int,
    cache_dir: Path | str | None = None,
) -> Rotations:
    """Render a turn in each of a number of random scenes.

    A scene and its turn are a function of the seed and its number, so the first scenes are the
    same however many are asked for. Scenes of different seeds are different: take one seed for
    training and another for the test.

    Args:
        scenes: The number of scenes.
        time: The number of steps.
        pillars: The number of pillars about the camera, at most 4.
        size: The height and width of the pictures.
        seed: The seed of the random numbers.
        cache_dir: A directory in which to keep what was rendered, and to look for it first.

    Returns:
        The pictures and their directions.

    Raises:
        ValueError: If a number is out of its range.
    """
    check_numbers(scenes=scenes, time=time, size=size)
    check_numbers(0, pillars=pillars, seed=seed)
    if cache_dir is None:
        return _render(scenes, time, pillars, size, seed)
    name = f"rotation{CACHE_VERSION}_{scenes}x{time}_{size}px_{pillars}pillars_seed{seed}.npz"
    path = Path(cache_dir).expanduser() / name
    if path.is_file():
        with np.load(path) as archive:
            return Rotations(*(torch.from_numpy(archive[part]) for part in Rotations._fields))
    came = _render(scenes, time, pillars, size, seed)
    _save(path, came)
    return came


def _save(path: Path, rotations: Rotations) -> None:
    """Write the file under another name, and give it its own when it is whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=path.parent, suffix=".part", delete=False) as stream:
        np.savez(stream, **{name: part.numpy() for name, part in rotations._asdict().items()})
    os.replace(stream.name, path)


def _render(scenes: int, time: int, pillars: int, size: int, seed: int) -> Rotations:
    frames = np.empty((scenes, time, 3, size, size), dtype=np.uint8)
    angles = np.empty((scenes, time))
    for number in range(scenes):
        stream = np.random.default_rng([seed, number])
        angles[number] = _turn(time, stream)
        frames[number] = render(scene(stream, pillars=pillars), angles[number], size=size)
    return Rotations(torch.from_numpy(frames), torch.from_numpy(angles))


def _turn(time: int, stream: np.random.Generator) -> NDArray[np.float64]:
    """Draw the directions of a turn, (time,)."""
    delay = stream.uniform(*ACCELERATION)
    steps = np.append(np.arange(time), PERIOD)
    gone = steps - delay * (1.0 - np.exp(-steps / delay))
    scale = 2 * np.pi * stream.uniform(1.0 - SPREAD, 1.0 + SPREAD) / gone[-1]
    return stream.uniform(0.0, 2 * np.pi) + scale * gone[:-1]


def rotation(
    batch: int,
    *,
    time: int = 30,
    pillars: int = 0,
    scenes: Rotations | None = None,
    seed: int | torch.Generator,
) -> Recall:
    """Draw turns of a camera in random mazes: about two turns in 30 steps.

    Rendering takes some milliseconds a sequence. To train on a GPU, render scenes once, some
    thousands, by `render_rotations`, and draw batches of them: ``rotation(10, scenes=rendered)``.

    Args:
        batch: The number of sequences.
        time: The number of steps; with `scenes` it is theirs.
        pillars: The number of pillars about the camera, at most 4; with `scenes` it is theirs.
        scenes: Rendered turns to draw the sequences from; None renders new scenes.
        seed: The seed of the random numbers, or a generator on the CPU.

    Returns:
        The sequences, (batch, time, 3, 32, 32), colours from 0 to 1. No frame is shown twice, so
        there is no source. Steps 16 and later are recalled, 2 to 13 come before.
        ``info["angles"]``, double (batch, time), are the directions in radians, not wrapped;
        ``info["nearest"]``, long (batch, time), is the step of the first 16 whose direction is the
        nearest to that of a recalled one, -1 elsewhere.

    Raises:
        TypeError: If a number, the scenes or the seed is none.
        ValueError: If a number is out of its range.

    Example:
        >>> turns = rotation(2, time=20, seed=0)
        >>> turns.batch.x.shape, turns.recalled[0].nonzero().flatten().tolist()
        (torch.Size([2, 20, 3, 32, 32]), [16, 17, 18, 19])
    """
    check_numbers(batch=batch)
    if not isinstance(scenes, Rotations | None):
        raise TypeError(f"scenes: expected Rotations or None, got {type(scenes).__name__}.")
    generator = seeded(seed)
    if scenes is None:
        number = int(torch.randint(2**62, (), generator=generator))
        scenes = render_rotations(batch, time=time, pillars=pillars, seed=number)
        rows = torch.arange(batch)
    else:
        rows = torch.randint(len(scenes.frames), (batch,), generator=generator)
    angles = scenes.angles[rows]
    steps = torch.arange(angles.shape[1]).expand(batch, -1)
    recalled = steps > PERIOD
    new = torch.full_like(steps, -1)
    sequences = Recall(
        Batch(Pictures(scenes.frames).take(rows)),
        new,
        new.clone(),
        recalled,
        (steps >= 2) & (steps < PERIOD - 1),
        {"angles": angles, "nearest": torch.where(recalled, _nearest(angles), -1)},
    )
    return sequences.to(scenes.frames.device)


def _nearest(angles: Tensor) -> Tensor:
    """Return the step of the first turn whose direction is the nearest, (batch, time)."""
    apart = angles[:, :, None] - angles[:, None, : PERIOD + 1]
    return torch.atan2(apart.sin(), apart.cos()).abs().argmin(2)


@register("datasets", "rotation")
def _dataset(sequences: int, *, time: int = 30, seed: int, data_dir: Path | None = None) -> Recall:
    """Turns of a camera in random mazes; see `rotation`."""
    return rotation(sequences, time=time, seed=seed)
