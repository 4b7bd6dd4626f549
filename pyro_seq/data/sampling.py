"""The order in which the sequences of a data set come in batches."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Sampler

from pyro_seq.data.batch import Batch
from pyro_seq.data.dataset import SequenceDataset
from pyro_seq.data.masks import training_mask

__all__ = ["BatchLoader", "BucketSampler", "batches"]

POOL = 50


class BucketSampler(Sampler[list[int]]):
    """The numbers of the sequences of each batch, such that their lengths are alike.

    An epoch's order is a function of the seed and the epoch alone. Sequences are shuffled, sorted
    by length within pools of 50 batches, and cut into batches, whose order is shuffled in turn.
    Under ``torchrun`` the processes share each batch of ``batch_size * world_size`` sequences, and
    have equally many batches; fewer sequences left over than processes join the last full batch.

    Args:
        lengths: The number of steps of each sequence, (sequences,), or, if all are equally long,
            the number of sequences.
        batch_size: The number of sequences of a batch of one process.
        shuffle: Whether the order is random, and another in every epoch.
        seed: The seed of the random numbers.
        drop_last: Whether to leave out the last, smaller batch.
        rank: The number of this process.
        world_size: The number of processes.

    Raises:
        ValueError: If there are too few sequences for one batch, or a number is out of its range.

    Example:
        >>> sampler = BucketSampler([3, 9, 4, 8], batch_size=2, shuffle=False)
        >>> list(sampler)
        [[0, 2], [3, 1]]
    """

    def __init__(
        self,
        lengths: Tensor | Sequence[int] | int,
        batch_size: int,
        *,
        shuffle: bool = True,
        seed: int = 0,
        drop_last: bool = False,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        if isinstance(lengths, int):
            lengths = [0] * lengths
        self.lengths = np.asarray(lengths)
        self.batch_size = batch_size
        self.shuffle = shuffle
        self.seed = seed
        self.drop_last = drop_last
        self.rank = rank
        self.world_size = world_size
        self.epoch = 0
        self._check()

    def _check(self) -> None:
        if self.batch_size < 1 or not 0 <= self.rank < self.world_size:
            raise ValueError(
                "batch_size, rank, world_size: expected a positive batch size and a rank from 0 "
                f"to world_size - 1, got {self.batch_size}, {self.rank}, {self.world_size}."
            )
        if len(self) == 0:
            raise ValueError(
                f"lengths: expected enough sequences for one batch of {self.batch_size} in each "
                f"of {self.world_size} processes, got {len(self.lengths)}."
            )

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch, whose order the next pass follows."""
        self.epoch = epoch

    def __len__(self) -> int:
        full, rest = divmod(len(self.lengths), self.batch_size * self.world_size)
        return full + (not self.drop_last and rest >= self.world_size)

    def __iter__(self) -> Iterator[list[int]]:
        stream = np.random.default_rng([self.seed, self.epoch])
        size = self.batch_size * self.world_size
        groups = np.split(self._ordered(stream), range(size, size * len(self), size))
        turn = stream.permutation(len(groups)) if self.shuffle else range(len(groups))
        for number in turn:
            yield groups[number][self.rank :: self.world_size].tolist()

    def _ordered(self, stream: np.random.Generator) -> NDArray[np.int64]:
        """Return the numbers of this epoch's sequences, shuffled if asked, sorted within pools."""
        count = len(self.lengths)
        order = stream.permutation(count) if self.shuffle else np.arange(count)
        size = self.batch_size * self.world_size
        if self.drop_last:
            order = order[: size * len(self)]
        pool = POOL * size if self.shuffle else count
        pools = np.split(order, range(pool, len(order), pool))
        return np.concatenate([part[self.lengths[part].argsort(kind="stable")] for part in pools])


class BatchLoader:
    """An iterable over the batches of one epoch after another.

    Everything is a function of the seed, the epoch and the number of the batch, so a training
    that stopped goes on from ``set_epoch(epoch, start=done)`` as if it had not. A complete pass
    moves on to the next epoch; a pass left early does not.

    Args:
        dataset: The sequences.
        sampler: The numbers of the sequences of each batch.
        drop_probability: The probability that a frame is hidden; see `training_mask`.
        observed_start: The number of frames at the start that are never hidden.
    """

    def __init__(
        self,
        dataset: SequenceDataset,
        sampler: BucketSampler,
        *,
        drop_probability: float = 0.0,
        observed_start: int = 3,
    ) -> None:
        self.dataset = dataset
        self.sampler = sampler
        self.drop_probability = drop_probability
        self.observed_start = observed_start
        self.start = 0

    def __len__(self) -> int:
        """Return the number of batches of an epoch."""
        return len(self.sampler)

    def set_epoch(self, epoch: int, start: int = 0) -> None:
        """Choose where the next pass begins.

        Args:
            epoch: The epoch, whose order the pass follows.
            start: The number of the first batch of the pass; those before it are left out.
        """
        self.sampler.set_epoch(epoch)
        self.start = start

    def __iter__(self) -> Iterator[Batch]:
        epoch, start, self.start = self.sampler.epoch, self.start, 0
        for number, indices in enumerate(self.sampler):
            if number >= start:
                yield self._hide(self.dataset[indices], epoch, number)
        self.set_epoch(epoch + 1)

    def _hide(self, batch: Batch, epoch: int, number: int) -> Batch:
        if self.drop_probability == 0.0:
            return batch
        words = (self.sampler.seed, epoch, number, self.sampler.rank)
        seed = int(np.random.SeedSequence(words).generate_state(1)[0])
        return training_mask(
            batch,
            self.drop_probability,
            observed_start=self.observed_start,
            generator=torch.Generator().manual_seed(seed),
        )


def batches(
    dataset: SequenceDataset,
    batch_size: int,
    *,
    shuffle: bool = True,
    seed: int = 0,
    drop_last: bool = False,
    drop_probability: float = 0.0,
    observed_start: int = 3,
    rank: int = 0,
    world_size: int = 1,
) -> BatchLoader:
    """Return an iterable over a data set's batches, made in this process by indexing.

    Args:
        dataset: The sequences.
        batch_size: The number of sequences of a batch of one process.
        shuffle: Whether the order is random, and another in every epoch.
        seed: The seed of the random numbers.
        drop_last: Whether to leave out the last, smaller batch.
        drop_probability: The probability that a frame is hidden; see `training_mask`.
        observed_start: The number of frames at the start that are never hidden.
        rank: The number of this process.
        world_size: The number of processes that share the data set.

    Returns:
        The loader.

    Raises:
        ValueError: If there are too few sequences for one batch, or a number is out of its range.

    Example:
        >>> import torch
        >>> loader = batches(SequenceDataset(torch.zeros(10, 5, 2)), batch_size=4)
        >>> sorted(batch.x.shape[0] for batch in loader)
        [2, 4, 4]
    """
    sampler = BucketSampler(
        len(dataset) if dataset.lengths is None else dataset.lengths,
        batch_size,
        shuffle=shuffle,
        seed=seed,
        drop_last=drop_last,
        rank=rank,
        world_size=world_size,
    )
    return BatchLoader(
        dataset, sampler, drop_probability=drop_probability, observed_start=observed_start
    )
