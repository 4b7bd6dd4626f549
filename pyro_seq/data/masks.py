"""Masks that hide frames: the protocols of the KVAE paper's imputation, and training with gaps."""

from __future__ import annotations

import torch
from torch import Tensor

from pyro_seq.data.batch import Batch

__all__ = ["gap_mask", "random_mask", "training_mask"]


def random_mask(
    sequences: int, time: int, drop_probability: float, *, observed_start: int = 4, seed: int
) -> Tensor:
    """Hide frames at random: each after the first few, independently, with one probability.

    Args:
        sequences: The number of sequences.
        time: The number of frames of each.
        drop_probability: The probability that a frame is hidden, from 0 to 1.
        observed_start: The number of frames at the start that are never hidden.
        seed: The seed of the random numbers.

    Returns:
        True where a frame is observed, bool (sequences, time).

    Raises:
        ValueError: If a number is out of its range.

    Example:
        >>> random_mask(1, 6, 1.0, observed_start=4, seed=0).tolist()
        [[True, True, True, True, False, False]]
    """
    generator = torch.Generator().manual_seed(seed)
    return _random_mask(sequences, time, drop_probability, observed_start, generator)


def gap_mask(sequences: int, time: int, gap: int, *, observed_start: int = 4) -> Tensor:
    """Hide the frames of one gap, the same in all sequences.

    Args:
        sequences: The number of sequences.
        time: The number of frames of each.
        gap: The number of hidden frames.
        observed_start: The number of frames before the gap.

    Returns:
        True where a frame is observed, bool (sequences, time).

    Raises:
        ValueError: If a number is negative, or the gap does not fit.

    Example:
        >>> gap_mask(1, 6, 1, observed_start=4).tolist()
        [[True, True, True, True, False, True]]
    """
    if gap < 0 or observed_start < 0 or observed_start + gap > time:
        raise ValueError(
            f"gap: expected a gap that fits after observed_start = {observed_start} of {time} "
            f"frames, got {gap}."
        )
    mask = torch.ones(sequences, time, dtype=torch.bool)
    mask[:, observed_start : observed_start + gap] = False
    return mask


def training_mask(
    batch: Batch,
    drop_probability: float,
    *,
    observed_start: int = 3,
    generator: torch.Generator | None = None,
) -> Batch:
    """Hide more frames of a batch at random, to train on sequences with missing frames.

    Args:
        batch: The batch. What is missing in it stays so.
        drop_probability: The probability that a frame is hidden, from 0 to 1.
        observed_start: The number of frames at the start that are never hidden.
        generator: The source of random numbers, on the CPU; None takes PyTorch's own.

    Returns:
        The batch with its new mask.

    Raises:
        ValueError: If a number is out of its range.
    """
    sequences, time = batch.x.shape[:2]
    mask = _random_mask(sequences, time, drop_probability, observed_start, generator)
    mask = mask.to(batch.x.device)
    return batch._replace(mask=mask if batch.mask is None else batch.mask & mask)


def _random_mask(
    sequences: int,
    time: int,
    drop_probability: float,
    observed_start: int,
    generator: torch.Generator | None,
) -> Tensor:
    if not 0.0 <= drop_probability <= 1.0:
        raise ValueError(
            f"drop_probability: expected a number from 0 to 1, got {drop_probability}."
        )
    if not 0 <= observed_start <= time:
        raise ValueError(
            f"observed_start: expected a number from 0 to time = {time}, got {observed_start}."
        )
    kept = torch.rand(sequences, time, generator=generator, dtype=torch.float64)
    return (kept >= drop_probability) | (torch.arange(time) < observed_start)
