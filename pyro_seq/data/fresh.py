"""Batches that are drawn anew for every step of training."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol

import numpy as np
import torch

from pyro_seq.data.arguments import check_numbers
from pyro_seq.data.batch import Batch
from pyro_seq.data.recall_tasks import Recall
from pyro_seq.data.scenes import Scenes

__all__ = ["FreshLoader"]


class _Make(Protocol):
    """Draws a batch from a generator."""

    def __call__(self, *, seed: torch.Generator) -> Recall | Scenes | Batch: ...


class FreshLoader:
    """An iterable over batches drawn anew, without end; an epoch is a number of them.

    Everything is a function of the seed, the epoch, the number of the batch and the process, so a
    training that stopped goes on from ``set_epoch(epoch, start=done)`` as if it had not. A
    complete pass moves on to the next epoch; a pass left early does not.

    Args:
        make: A function that draws a batch from ``seed=``, a generator on the CPU, such as
            `functools.partial` of `recall`, `grid_map` or `occluded_digits`.
        batches: The number of batches of an epoch.
        seed: The seed of the random numbers.
        rank: The number of this process; when None that of ``torch.distributed`` where it runs,
            else 0. Processes draw different batches.
        whole: Whether what is known of the sequences, such as their labels, comes with them.

    Raises:
        TypeError: If a number is none; in a pass, if what was drawn has no batch.
        ValueError: If the number of batches is not positive, or the seed is negative.

    Example:
        >>> from functools import partial
        >>> from pyro_seq.data import Vectors, recall
        >>> make = partial(recall, "perfect", Vectors(8), 32, length=8, recalled=3)
        >>> train = FreshLoader(make, batches=100, seed=0)
        >>> next(iter(train)).x.shape
        torch.Size([32, 11, 8])
    """

    def __init__(
        self,
        make: _Make,
        batches: int,
        *,
        seed: int = 0,
        rank: int | None = None,
        whole: bool = False,
    ) -> None:
        check_numbers(batches=batches)
        check_numbers(0, seed=seed)
        self.make = make
        self.batches = batches
        self.seed = seed
        self.rank = rank
        self.whole = whole
        self.epoch = 0
        self.start = 0

    def __len__(self) -> int:
        """Return the number of batches of an epoch."""
        return self.batches

    def set_epoch(self, epoch: int, start: int = 0) -> None:
        """Choose where the next pass begins.

        Args:
            epoch: The epoch, whose batches the pass has.
            start: The number of the first batch of the pass; those before it are left out.
        """
        self.epoch = epoch
        self.start = start

    def __iter__(self) -> Iterator[Any]:  # of batches, or of all that was drawn if whole
        epoch, start, self.start = self.epoch, self.start, 0
        for number in range(start, self.batches):
            words = (self.seed, epoch, number, _rank() if self.rank is None else self.rank)
            seed = int(np.random.SeedSequence(words).generate_state(1, np.uint64)[0] >> 1)
            came = self.make(seed=torch.Generator().manual_seed(seed))
            yield came if self.whole else _batch(came)
        self.set_epoch(epoch + 1)


def _batch(came: Recall | Scenes | Batch) -> Batch:
    if isinstance(came, Batch):
        return came
    if not isinstance(came, Recall | Scenes):
        raise TypeError(
            f"make: expected a function that draws a Batch, Recall or Scenes, got one of "
            f"{type(came).__name__}."
        )
    return came.batch


def _rank() -> int:
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank()
    return 0
