from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from pyro_seq import get
from pyro_seq.data import ENVIRONMENTS, Simulation, simulate
from tests.data import pictures

DT = 0.2
RADIUS = 3.0


@pytest.fixture(scope="module")
def simulations() -> dict[str, Simulation]:
    return {name: simulate(name, 300, time=30, seed=5678) for name in ENVIRONMENTS}


def speed(simulation: Simulation) -> NDArray[np.float64]:
    return np.linalg.norm(simulation.state[..., 2:], axis=-1)


def test_first_ball_of_the_test_set_is_that_of_the_original_release() -> None:
    state = simulate("box", 1, time=2, seed=5678).state[0, 1]
    np.testing.assert_allclose(state, [17.13941, 6.1379967, -10.273519, 0.68998253], rtol=2e-7)


@pytest.mark.parametrize(
    ("environment", "sequence", "state"),
    [
        ("box", 16, [13.878923614, 17.959138699, 2.829463161, 13.419833627]),
        ("gravity", 16, [8.070986136, 14.270376292, 1.797932374, -10.472603827]),
        ("polygon", 16, [12.77698838, 17.623523022, -2.797110892, 13.434931352]),
        ("polygon", 151, [15.852349741, 14.245771479, -11.494723378, -4.019517989]),
        ("pong", 4, [22.086932348, 3.933926234, -2.969714748, 7.484871701]),
        ("pong", 151, [6.13563576, 5.05269501, 2.354221996, -8.593354339]),
    ],
)
def test_twentieth_state_equals_that_of_pymunk(
    simulations: dict[str, Simulation], environment: str, sequence: int, state: list[float]
) -> None:
    """The values are those of pymunk 7.3.1 with the settings of the original release."""
    came = simulations[environment].state[sequence, 19]
    np.testing.assert_allclose(came, state, atol=1e-7)


@pytest.mark.parametrize(
    ("environment", "sequence", "step", "picture"),
    [("polygon", 16, 14, pictures.POLYGON), ("pong", 4, 19, pictures.PONG)],
)
def test_frame_equals_that_of_pygame(
    simulations: dict[str, Simulation], environment: str, sequence: int, step: int, picture: str
) -> None:
    frame = simulations[environment].frames[sequence, step, 0]
    drawn = ["".join(".#"[pixel] for pixel in row) for row in frame]
    assert drawn == picture.split()


def test_shapes_and_types(simulations: dict[str, Simulation]) -> None:
    for simulation in simulations.values():
        assert simulation.frames.shape == (300, 30, 1, 32, 32)
        assert simulation.frames.dtype == np.uint8
        assert set(np.unique(simulation.frames)) == {0, 1}
        assert simulation.state.shape == (300, 30, 4)
        assert simulation.state.dtype == np.float64


def test_box_keeps_energy_and_ball(simulations: dict[str, Simulation]) -> None:
    simulation = simulations["box"]
    bounces = (np.diff(simulation.state[..., 2:], axis=1) != 0).any(-1)
    assert bounces.sum() > 500
    np.testing.assert_allclose(speed(simulation), speed(simulation)[:, :1].repeat(30, 1))
    assert speed(simulation).min() >= 10.0 and speed(simulation).max() <= 15.0
    position = simulation.state[..., :2]
    assert position.min() > 2.0 and position.max() < 30.0


def test_polygon_turns_every_ball_back(simulations: dict[str, Simulation]) -> None:
    position = simulations["polygon"].state[..., :2]
    corners = np.array([(3, 1), (1, 15), (8, 30), (25, 30), (30, 8), (15, 1)])
    edge = np.roll(corners, -1, axis=0) - corners
    offset = position[:, :, None] - corners
    assert (edge[:, 1] * offset[..., 0] - edge[:, 0] * offset[..., 1]).min() > 0.0


def test_box_ball_flies_straight_between_bounces(simulations: dict[str, Simulation]) -> None:
    state = simulations["box"].state
    apart = ((state[..., :2] > 2.0 + RADIUS) & (state[..., :2] < 30.0 - RADIUS)).all(-1)
    free = apart[:, :-1] & apart[:, 1:]
    assert free.mean() > 0.5
    step = state[:, 1:, :2] - state[:, :-1, :2]
    np.testing.assert_allclose(step[free], DT * state[:, :-1, 2:][free], atol=1e-12)
    np.testing.assert_array_equal(state[:, 1:, 2:][free], state[:, :-1, 2:][free])


def test_gravity_accelerates_between_bounces(simulations: dict[str, Simulation]) -> None:
    state = simulations["gravity"].state
    apart = ((state[..., :2] > 2.0 + RADIUS) & (state[..., :2] < 30.0 - RADIUS)).all(-1)
    free = apart[:, :-1] & apart[:, 1:]
    assert free.mean() > 0.3
    change = (state[:, 1:, 2:] - state[:, :-1, 2:])[free]
    np.testing.assert_allclose(change, np.broadcast_to([0.0, -5.0 * DT], change.shape), atol=1e-12)


@pytest.mark.parametrize(("axis", "other"), [(3, 2), (2, 3)], ids=["walls", "paddles"])
def test_pong_bounces_keep_their_share_of_the_normal_speed(
    simulations: dict[str, Simulation], axis: int, other: int
) -> None:
    before, after = simulations["pong"].state[:, :-1], simulations["pong"].state[:, 1:]
    turned = before[..., axis] * after[..., axis] < 0
    head_on = turned & (before[..., other] == after[..., other])
    assert head_on.sum() > 50
    ratio = after[head_on][:, axis] / before[head_on][:, axis]
    np.testing.assert_allclose(ratio, -0.891)


def test_pong_paddles_follow_the_ball(simulations: dict[str, Simulation]) -> None:
    frames, state = simulations["pong"]
    inner = frames[:, :, 0, 1:31, 31]
    row = 1 + inner.argmax(-1)
    centre = 32 - row - 3.0
    height = state[:, :-1, 1]
    down = np.where(height < centre[:, :-1] - 1, np.minimum(centre[:, :-1] - 3, 2), 0)
    up = np.where(height > centre[:, :-1] + 1, np.minimum(29 - centre[:, :-1], 2), 0)
    seen = (row[:, :-1] > 1) & (row[:, 1:] > 1)
    assert seen.mean() > 0.5 and (down[seen] == 2).any() and (up[seen] == 2).any()
    np.testing.assert_array_equal(np.diff(centre)[seen], (up - down)[seen])


def test_box_frames_show_walls_and_ball(simulations: dict[str, Simulation]) -> None:
    frames, state = simulations["box"]
    inside = ((state[..., :2] >= 6.0) & (state[..., :2] < 26.0)).all(-1)
    assert (frames.sum((2, 3, 4))[inside] == 112 + 25).all()
    outline = np.zeros((32, 32), dtype=np.uint8)
    outline[2:31, [2, 30]] = outline[[2, 30], 2:31] = 1
    assert outline.sum() == 112
    ball = frames[:, :, 0][inside] - outline
    assert set(np.unique(ball)) == {0, 1}
    rows, columns = np.arange(32)[:, None], np.arange(32)
    # The disc's centroid is its centre; the end of the orientation line lies (0.5, 3.5) from it.
    across = (ball * (columns + 0.5)).sum((1, 2)) / 25 - 3.5 / 25
    along = 32 - (ball * (rows + 0.5)).sum((1, 2)) / 25 + 0.5 / 25
    np.testing.assert_allclose(across, np.floor(state[inside][:, 0]))
    np.testing.assert_allclose(along, np.floor(state[inside][:, 1]))


def test_fallen_balls_are_drawn_nowhere() -> None:
    simulation = simulate("gravity", 1000, seed=5678)
    fallen = simulation.state[..., 1] < -RADIUS
    assert fallen.any()
    assert (simulation.frames.sum((2, 3, 4))[fallen] == 112).all()


@pytest.mark.parametrize("environment", list(ENVIRONMENTS))
def test_seed_decides_everything(environment: str) -> None:
    before = np.random.get_state()[1].copy()  # noqa: NPY002
    one, two = (simulate(environment, n, time=6, seed=3) for n in (5, 9))
    np.testing.assert_array_equal(one.frames, two.frames[:5])
    np.testing.assert_array_equal(one.state, two.state[:5])
    assert (one.state[:, 0] != simulate(environment, 5, time=6, seed=4).state[:, 0]).all()
    np.testing.assert_array_equal(np.random.get_state()[1], before)  # noqa: NPY002


@pytest.mark.parametrize("environment", list(ENVIRONMENTS))
def test_environments_are_registered_data_sets(environment: str) -> None:
    came = get("datasets", environment)(2, time=4, seed=1, data_dir=None)
    np.testing.assert_array_equal(came.frames, simulate(environment, 2, time=4, seed=1).frames)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("square", 2, 20), "environment: expected one of box, gravity, polygon, pong"),
        (("box", 0, 20), "sequences: expected a positive number, got 0"),
        (("box", 2, -1), "time: expected a positive number, got -1"),
    ],
)
def test_errors_name_the_argument(arguments: tuple[str, int, int], message: str) -> None:
    environment, sequences, time = arguments
    with pytest.raises(ValueError, match=message):
        simulate(environment, sequences, time=time, seed=0)
