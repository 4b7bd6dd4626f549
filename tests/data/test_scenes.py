from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import Tensor

from pyro_seq.data import FreshLoader, Pictures, moving_digits, moving_shapes, occluded_digits
from pyro_seq.data.scenes import fold, moved, placed, segment

GENERATOR = torch.Generator().manual_seed(0)
BANK = Pictures(torch.rand(7, 1, 8, 8, generator=GENERATOR), torch.arange(7))


def bounced(position: Tensor, velocity: Tensor, time: int, high: Tensor) -> Tensor:
    """Step by step: what leaves the room is reflected, and goes the other way."""
    position, velocity, steps = position.clone(), velocity.clone(), []
    for _ in range(time):
        steps.append(position.clone())
        position = position + velocity
        low, above = position < 0, position > high
        position = torch.where(low, -position, torch.where(above, 2 * high - position, position))
        velocity = torch.where(low | above, -velocity, velocity)
    return torch.stack(steps, 1)


@pytest.mark.parametrize("kind", [torch.long, torch.double])
def test_objects_are_reflected_as_step_by_step(kind: torch.dtype) -> None:
    high = torch.tensor([18, 5])
    start = (torch.rand(50, 3, 2, dtype=torch.double) * (high + 1)).to(torch.long).to(kind)
    velocity = torch.randint(-4, 5, (50, 3, 2)).to(kind) / (1 if kind == torch.long else 1.7)
    velocity = velocity.to(kind)
    came = moved(start, velocity, 12, high)
    torch.testing.assert_close(came, bounced(start, velocity, 12, high.to(kind)))
    assert came.dtype == kind and came.min() >= 0 and (came <= high).all()


def test_nothing_moves_without_room() -> None:
    assert fold(torch.tensor([-3, 0, 5]), 0).tolist() == [0, 0, 0]
    assert fold(torch.tensor([-0.25, 0.75, 1.2]), 0.5).tolist() == pytest.approx([0.25, 0.25, 0.2])


def test_pictures_are_placed_as_by_slices() -> None:
    pictures = torch.rand(4, 3, 5, 6)
    positions = torch.randint(-2, 9, (4, 2, 3, 2))
    came = placed(pictures, positions, 10)
    wide = torch.zeros(4, 2, 3, 30, 30)
    for index in torch.cartesian_prod(torch.arange(4), torch.arange(2), torch.arange(3)).tolist():
        batch, time, which = index
        row, column = (positions[batch, time, which] + 10).tolist()
        wide[batch, time, which, row : row + 5, column : column + 6] = pictures[batch, which]
    assert torch.equal(came, wide[..., 10:20, 10:20])


def test_pixels_of_one_none_and_several() -> None:
    layers = torch.tensor([[0.0, 0.5, 0.0, 0.3], [0.0, 0.0, 0.2, 0.3], [0.0, 0.0, 0.0, 0.0]])
    assert segment(layers.view(1, 1, 3, 1, 4)).flatten().tolist() == [0, 1, 2, -1]
    assert segment(layers.view(1, 1, 3, 1, 4), 0.25).flatten().tolist() == [0, 1, 0, -1]


@pytest.mark.parametrize(
    "make",
    [
        partial(occluded_digits, BANK, 5),
        partial(moving_digits, BANK, 5, time=4, size=20),
        partial(moving_shapes, "shapes12", 5, time=4),
    ],
)
def test_scenes_are_a_function_of_the_seed(make) -> None:  # noqa: ANN001
    state = torch.get_rng_state()
    one, again = make(seed=3), make(seed=torch.Generator().manual_seed(3))
    other = make(seed=4)
    for name in ("labels", "segments", "positions", "frames"):
        assert torch.equal(getattr(one, name), getattr(again, name))
    assert not torch.equal(one.frames, other.frames)
    assert torch.equal(torch.get_rng_state(), state)
    assert one.segments.shape == (*one.frames.shape[:2], *one.frames.shape[3:])
    assert one.positions.shape[:3] == (5, one.frames.shape[1], one.labels.shape[1])
    assert one.to("cpu").info.keys() == one.info.keys()


def test_training_takes_batches_alone_or_with_what_is_known() -> None:
    make = partial(occluded_digits, BANK, 3)
    plain, whole = FreshLoader(make, 2, seed=1), FreshLoader(make, 2, seed=1, whole=True)
    for batch, scenes in zip(plain, whole, strict=True):
        assert torch.equal(batch.x, scenes.frames) and scenes.labels.shape == (3, 1)


def test_banks_are_selected() -> None:
    rows = torch.tensor([4, 1])
    assert torch.equal(BANK.select(rows).frames, BANK.frames[rows])
    assert BANK.select(rows).labels.tolist() == [4, 1]
    assert len(BANK.select(slice(2, None)).frames) == 5
    assert BANK._replace(labels=None).select(rows).labels is None
