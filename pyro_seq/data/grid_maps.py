"""A map of pictures, seen by someone who walks on it at random."""

from __future__ import annotations

import torch
from torch import Tensor

from pyro_seq.data.arguments import check_numbers
from pyro_seq.data.batch import Batch
from pyro_seq.data.pictures import Pictures, Vectors, check_bank, seeded
from pyro_seq.data.recall_tasks import Recall

__all__ = ["MOVES", "grid_map"]

MOVES = ("up", "down", "left", "right")
_OFFSETS = torch.tensor([[-1, 0], [1, 0], [0, -1], [0, 1]])


def grid_map(
    bank: Pictures | Vectors,
    batch: int,
    *,
    time: int = 25,
    side: int = 4,
    seed: int | torch.Generator,
) -> Recall:
    """Draw maps of pictures, and walk on each at random.

    A map is a square of cells, each with a picture of the bank. The walk begins in a cell drawn
    at random; each action is drawn from those that do not leave the map, with equal probabilities.
    The control of a step is the action that led to its frame, one-hot in the order of `MOVES`, and
    0 at the first step.

    Args:
        bank: Where pictures come from. Training and test need banks of different pictures.
        batch: The number of maps.
        time: The number of steps.
        side: The number of cells along a side.
        seed: The seed of the random numbers, or a generator on the CPU.

    Returns:
        The sequences; cells that were seen before are recalled, their source is the step of the
        first visit. ``info["cells"]``, long (batch, time), is the cell of each step, row by row
        from 0; ``info["actions"]``, long (batch, time), the number of the action that led to it,
        -1 at the first step; ``info["map"]``, long (batch, cells), the numbers of the pictures in
        the bank, unless it is of vectors.

    Raises:
        TypeError: If the bank, a number or the seed is none.
        ValueError: If a number is out of its range, or the bank's frames and labels do not fit.

    Example:
        >>> maps = grid_map(Vectors(8), 4, time=10, seed=0)
        >>> maps.batch.x.shape, maps.batch.controls.shape
        (torch.Size([4, 10, 8]), torch.Size([4, 10, 4]))

    References:
        M. Gemici, C.-C. Hung, A. Santoro, G. Wayne, S. Mohamed, D. J. Rezende, D. Amos, T.
        Lillicrap (2017). Generative Temporal Models with Memory. https://arxiv.org/abs/1702.04649
    """
    check_numbers(batch=batch, time=time)
    check_numbers(2, side=side)
    check_bank(bank)
    generator = seeded(seed)
    pictures, rows = bank.sample((batch, side * side), generator)
    cells, actions = _walk(batch, time, side, generator)
    seen = cells[:, :, None] == cells[:, None, :]
    first = seen.byte().argmax(2)
    revisited = first < torch.arange(time)
    info = {"cells": cells, "actions": actions}
    if isinstance(bank, Pictures):
        info["map"] = rows
    shown = rows.gather(1, cells)
    frames = pictures.take(shown)
    codes = torch.nn.functional.one_hot(actions + 1, len(MOVES) + 1)[..., 1:].to(frames.dtype)
    sequences = Recall(
        Batch(frames, None, codes),
        torch.where(revisited, first, -1),
        torch.full_like(shown, -1) if pictures.labels is None else pictures.labels[shown],
        revisited,
        ~revisited,
        info,
    )
    return sequences.to(frames.device)


def _walk(batch: int, time: int, side: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Return the cell of each step and the action that led to it, each (batch, time)."""
    legal, count, target = _tables(side)
    cell = torch.randint(side * side, (batch,), generator=generator)
    draws = torch.rand(time, batch, generator=generator, dtype=torch.float64)
    cells, actions = [cell], [torch.full((batch,), -1)]
    for draw in draws[1:]:
        action = legal[cell, (draw * count[cell]).long()]
        cell = target[cell, action]
        cells.append(cell)
        actions.append(action)
    return torch.stack(cells, 1), torch.stack(actions, 1)


def _tables(side: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return what can be done in each cell.

    Returns:
        The legal actions, first in each row, (cells, 4); how many they are, (cells,); the cell
        that each action leads to, (cells, 4).
    """
    cells = torch.arange(side * side)
    place = torch.stack([cells // side, cells % side], 1)[:, None] + _OFFSETS
    inside = ((place >= 0) & (place < side)).all(2)
    legal = inside.byte().argsort(dim=1, descending=True, stable=True)
    return legal, inside.sum(1), place[..., 0] * side + place[..., 1]
