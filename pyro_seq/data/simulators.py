r"""The four simulated environments of the KVAE paper, as physics on arrays.

A ball of radius 3 and mass 1 moves in a plane of 32 by 32 units, y upwards. One step of
``dt = 0.2`` lies between two frames, and is that of the Chipmunk engine, which the authors used:

.. math::
    p &\leftarrow p + (v + \beta)\,\Delta t \\
    v &\leftarrow v + g\,\Delta t + \sum_c n_c\, j_c, \qquad
    n_c \cdot v^+ \geq -e\, n_c \cdot v^-

with one impulse :math:`j_c \geq 0` per contact, found by ten Gauss-Seidel sweeps, and with a
pseudo-velocity :math:`\beta` that pushes a penetrating ball out during the next step only, so that
no energy is added. A fast ball can pass a wall, as it can in Chipmunk: in "gravity", about one
sequence in a hundred falls through the floor.

References:
    M. Fraccaro, S. Kamronn, U. Paquet, O. Winther (2017). A Disentangled Recognition and Nonlinear
    Dynamics Model for Unsupervised Learning. https://arxiv.org/abs/1710.05741
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pyro_seq.data.rendering import BALL, HEIGHT, PADDLE, draw, draw_walls
from pyro_seq.plugins import register

__all__ = ["ENVIRONMENTS", "Environment", "Simulation", "simulate"]

Floats = NDArray[np.float64]

DT = 0.2
RADIUS = 3.0
MARGIN = 6.0
SWEEPS = 10
SLOP = 0.1
CORRECTION = 1.0 - 0.9 ** (60.0 * DT)
PADDLE_REACH = 1.0
PADDLE_STEP = 2.0
PADDLES = np.array([[[0.0, 19.0], [0.0, 13.0]], [[30.0, 19.0], [30.0, 13.0]]])


class Environment(NamedTuple):
    """The constants of one environment.

    Attributes:
        walls: The corners of each wall, (walls, 2, 2): start and end, each (x, y).
        spread: The standard deviation of the first position about the centre, per axis.
        speed: The least and the greatest first speed, in units per unit of time.
        gravity: The acceleration along y.
        restitution: The share of the normal speed that a bounce keeps.
        paddles: Whether two paddles follow the ball, as in pong.
    """

    walls: Floats
    spread: float
    speed: tuple[float, float]
    gravity: float = 0.0
    restitution: float = 1.0
    paddles: bool = False


class Simulation(NamedTuple):
    """Simulated sequences.

    Attributes:
        frames: The pictures, uint8 of values 0 and 1, (sequences, time, 1, 32, 32).
        state: The ball, (sequences, time, 4): position (x, y), then velocity (x, y).
            ``state[n, t]`` is the state that ``frames[n, t]`` shows.
    """

    frames: NDArray[np.uint8]
    state: Floats


class _Contacts(NamedTuple):
    """Unit normals to the ball (balls, walls, 2), and gaps (balls, walls), negative on touch."""

    normal: Floats
    gap: Floats


def _closed(corners: list[tuple[float, float]]) -> Floats:
    """Return the sides of the closed polygon, (corners, 2, 2)."""
    points = np.array(corners)
    return np.stack([points, np.roll(points, -1, axis=0)], axis=1)


_BOX = _closed([(2.0, 2.0), (2.0, 30.0), (30.0, 30.0), (30.0, 2.0)])
_POLYGON = _closed([(3.0, 1.0), (1.0, 15.0), (8.0, 30.0), (25.0, 30.0), (30.0, 8.0), (15.0, 1.0)])
_PONG = np.array([[[0.0, 1.0], [32.0, 1.0]], [[0.0, 32.0], [32.0, 32.0]]])

ENVIRONMENTS: Mapping[str, Environment] = MappingProxyType(
    {
        "box": Environment(_BOX, spread=10.0, speed=(10.0, 15.0)),
        "gravity": Environment(_BOX, spread=8.0, speed=(5.0, 10.0), gravity=-5.0),
        "polygon": Environment(_POLYGON, spread=2.5, speed=(10.0, 15.0)),
        "pong": Environment(
            _PONG, spread=3.0, speed=(10.0, 10.0), restitution=0.9 * 0.99, paddles=True
        ),
    }
)


def simulate(environment: str, sequences: int, *, time: int = 20, seed: int) -> Simulation:
    r"""Simulate sequences of pictures of a ball, and the ball's state.

    The random numbers are those of the authors' release: one legacy NumPy stream, and for each
    sequence the angle, the speed and two normals, in this order. The first ``k`` sequences are the
    same however many are asked for. The paper's training set is ``sequences=5000, seed=1234``, its
    test set ``sequences=1000, seed=5678`` (pong's training set had no seed).

    The authors' files save the state one step later than the frame, and none for pong. Here a
    state and its frame belong together: their ``state[n, t]`` is ``state[n, t + 1]`` here.

    Args:
        environment: One of ``ENVIRONMENTS``: "box", "gravity", "polygon" or "pong".
        sequences: The number of sequences.
        time: The number of frames of each sequence.
        seed: The seed of the random numbers.

    Returns:
        The frames and the states.

    Raises:
        ValueError: If the environment is unknown, or a number is not positive.

    Example:
        >>> frames, state = simulate("box", 2, time=5, seed=1234)
        >>> frames.shape, state.shape
        ((2, 5, 1, 32, 32), (2, 5, 4))
    """
    if environment not in ENVIRONMENTS:
        known = ", ".join(ENVIRONMENTS)
        raise ValueError(f"environment: expected one of {known}, got {environment!r}")
    for name, value in (("sequences", sequences), ("time", time)):
        if value < 1:
            raise ValueError(f"{name}: expected a positive number, got {value}")
    world = ENVIRONMENTS[environment]
    ball = _first_state(world, sequences, np.random.RandomState(seed))
    state, paddles = _trajectory(world, ball, time)
    frames = np.zeros((sequences, time, HEIGHT, HEIGHT), dtype=np.uint8)
    draw_walls(frames, world.walls)
    if world.paddles:
        for side in range(len(PADDLES)):
            draw(frames, paddles[:, :, side, 0], PADDLE)
    draw(frames, state[..., :2], BALL)
    return Simulation(frames[:, :, None], state)


def _first_state(world: Environment, sequences: int, stream: np.random.RandomState) -> Floats:
    """Draw the first positions and velocities, (sequences, 4)."""
    draws = np.empty((sequences, 4))
    for row in draws:
        row[0] = stream.uniform(0.0, 360.0)
        row[1] = world.speed[0] if world.paddles else stream.uniform(*world.speed)
        row[2:] = stream.normal(size=2)
    angle, speed = np.deg2rad(draws[:, 0]), draws[:, 1]
    position = np.clip(0.5 * HEIGHT + world.spread * draws[:, 2:], MARGIN, HEIGHT - MARGIN)
    return np.column_stack([position, speed * np.cos(angle), speed * np.sin(angle)])


def _trajectory(world: Environment, ball: Floats, time: int) -> tuple[Floats, Floats]:
    """Return the drawn states (sequences, time, 4) and paddles (sequences, time, 2, 2, 2).

    Pong is drawn after a step, the others before it.
    """
    state = np.empty((len(ball), time, 4))
    paddles = np.empty((len(ball), time, *PADDLES.shape))
    paddle = np.repeat(PADDLES[None], len(ball), axis=0)
    push = np.zeros_like(ball[:, :2])
    for step in range(time):
        if not world.paddles:
            state[:, step] = ball
        else:
            paddle = _follow(paddle, ball[:, 1])
        ball, push = _step(world, ball, push, paddle)
        if world.paddles:
            state[:, step] = ball
            paddles[:, step] = paddle
    return state, paddles


def _follow(paddle: Floats, height: Floats) -> Floats:
    """Move the paddles (sequences, 2, 2, 2), top then bottom, towards the height (sequences,)."""
    top, bottom = paddle[:, :, 0, 1], paddle[:, :, 1, 1]
    centre = 0.5 * (top + bottom)
    down = np.where(height[:, None] < centre - 1.0, np.minimum(bottom, PADDLE_STEP), 0.0)
    up = np.where(height[:, None] > centre + 1.0, np.minimum(HEIGHT - top, PADDLE_STEP), 0.0)
    moved = paddle.copy()
    moved[..., 1] += (up - down)[..., None]
    return moved


def _step(world: Environment, ball: Floats, push: Floats, paddle: Floats) -> tuple[Floats, Floats]:
    """Advance all balls by one step.

    Returns:
        The states (sequences, 4) and the pseudo-velocities of the next step (sequences, 2).
    """
    velocity = ball[:, 2:].copy()
    position = ball[:, :2] + (velocity + push) * DT
    contacts = _find_contacts(position, world.walls[None], RADIUS)
    if world.paddles:
        others = _find_contacts(position, paddle, RADIUS + PADDLE_REACH)
        contacts = _Contacts(
            *(np.concatenate(pair, axis=1) for pair in zip(contacts, others, strict=True))
        )
    touching = (contacts.gap < 0.0).any(axis=1)
    hit = _Contacts(contacts.normal[touching], contacts.gap[touching])
    before = velocity[touching]
    velocity[:, 1] += world.gravity * DT
    push = np.zeros_like(velocity)
    velocity[touching], push[touching] = _bounce(
        before, velocity[touching], hit, world.restitution
    )
    return np.concatenate([position, velocity], axis=1), push


def _find_contacts(position: Floats, walls: Floats, reach: float) -> _Contacts:
    """Find where positions (sequences, 2) come near walls (sequences or 1, walls, 2, 2)."""
    start, edge = walls[:, :, 0], walls[:, :, 1] - walls[:, :, 0]
    offset = position[:, None] - start
    along = np.clip((offset * edge).sum(-1) / (edge * edge).sum(-1), 0.0, 1.0)
    delta = offset - along[..., None] * edge
    distance = np.sqrt((delta * delta).sum(-1))
    normal = delta / np.maximum(distance, np.finfo(np.float64).tiny)[..., None]
    return _Contacts(normal, distance - reach)


def _bounce(
    before: Floats, velocity: Floats, contacts: _Contacts, restitution: float
) -> tuple[Floats, Floats]:
    """Solve for the contact impulses, the last wall first, as Chipmunk does.

    Returns:
        The velocities (balls, 2) and the pseudo-velocities (balls, 2) after the contacts.
    """
    normal, gap = contacts
    order = list(reversed(range(gap.shape[1])))
    target = restitution * (before[:, None] * normal).sum(-1)
    bias = -CORRECTION * np.minimum(0.0, gap + SLOP) / DT
    push, impulse, shove = np.zeros_like(velocity), np.zeros_like(gap), np.zeros_like(gap)
    for wall in order * SWEEPS:
        way, touching = normal[:, wall], gap[:, wall] < 0.0
        shoved = shove[:, wall] + bias[:, wall] - (push * way).sum(-1)
        shoved = np.where(touching, np.maximum(shoved, 0.0), 0.0)
        push = push + way * (shoved - shove[:, wall])[:, None]
        pulsed = impulse[:, wall] - target[:, wall] - (velocity * way).sum(-1)
        pulsed = np.where(touching, np.maximum(pulsed, 0.0), 0.0)
        velocity = velocity + way * (pulsed - impulse[:, wall])[:, None]
        shove[:, wall], impulse[:, wall] = shoved, pulsed
    return velocity, push


def _register(environment: str) -> None:
    """Register an environment as a data set."""

    def dataset(
        sequences: int, *, time: int = 20, seed: int, data_dir: Path | None = None
    ) -> Simulation:
        return simulate(environment, sequences, time=time, seed=seed)

    dataset.__doc__ = f"Simulate sequences of the environment {environment!r}; see `simulate`."
    register("datasets", environment)(dataset)


for _environment in ENVIRONMENTS:
    _register(_environment)
