"""Crops: parts of one length out of longer sequences, for training and for validation."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pyro_seq.data.batch import Batch
from pyro_seq.data.dataset import SequenceDataset
from pyro_seq.data.sampling import BucketSampler

__all__ = ["Augment", "CropLoader", "fixed_crops", "random_crops"]

Augment = Callable[[Batch, torch.Generator], Batch]
"""Changes a batch at random; all that it draws comes from the generator, on the CPU."""

Short = Literal["drop", "pad"]


class CropLoader:
    """An iterable over random crops, one batch after another; `random_crops` makes it.

    Everything is a function of the seed, the epoch and the number of the batch, so a training
    that stopped goes on from ``set_epoch(epoch, start=done)`` as if it had not. A complete pass
    moves on to the next epoch; a pass left early does not.

    Args:
        dataset: The sequences.
        length: The number of steps of a crop.
        rows: The number of the sequence that each crop of an epoch is cut from, (crops,).
        sampler: The numbers of the crops of each batch.
        augment: What is done to every batch, or None.
    """

    def __init__(
        self,
        dataset: SequenceDataset,
        length: int,
        rows: NDArray[np.int64],
        sampler: BucketSampler,
        *,
        augment: Augment | None = None,
    ) -> None:
        self.dataset = dataset
        self.length = length
        self.rows = torch.as_tensor(rows)
        self.sampler = sampler
        self.augment = augment
        self.start = 0
        self._room = _lengths(dataset)[rows] - length
        self._masked = _needs_mask(dataset, self._room)

    def __len__(self) -> int:
        """Return the number of batches of an epoch."""
        return len(self.sampler)

    def set_epoch(self, epoch: int, start: int = 0) -> None:
        """Choose where the next pass begins.

        Args:
            epoch: The epoch, whose crops and order the pass follows.
            start: The number of the first batch of the pass; those before it are left out.
        """
        self.sampler.set_epoch(epoch)
        self.start = start

    def __iter__(self) -> Iterator[Batch]:
        epoch, start, self.start = self.sampler.epoch, self.start, 0
        first = torch.as_tensor(_draw(self._room, self.sampler.seed, epoch))
        for number, indices in enumerate(self.sampler):
            if number >= start:
                chosen = torch.as_tensor(indices)
                batch = _cut(
                    self.dataset, self.rows[chosen], first[chosen], self.length, self._masked
                )
                yield self._change(batch, epoch, number)
        self.set_epoch(epoch + 1)

    def _change(self, batch: Batch, epoch: int, number: int) -> Batch:
        if self.augment is None:
            return batch
        words = (self.sampler.seed, epoch, number, self.sampler.rank, 2)
        seed = int(np.random.SeedSequence(words).generate_state(1)[0])
        return self.augment(batch, torch.Generator().manual_seed(seed))


def random_crops(
    dataset: SequenceDataset,
    length: int,
    batch_size: int,
    *,
    crops_per_sequence: int = 1,
    short: Short = "drop",
    augment: Augment | None = None,
    seed: int = 0,
    drop_last: bool = False,
    rank: int = 0,
    world_size: int = 1,
) -> CropLoader:
    """Return batches of crops, in every epoch other crops at random places of every sequence.

    The place of a crop is uniform over its sequence. Batches without a missing frame have no mask.

    Args:
        dataset: The sequences.
        length: The number of steps of a crop.
        batch_size: The number of crops of a batch of one process.
        crops_per_sequence: The number of crops of each sequence in an epoch.
        short: What becomes of sequences that are shorter than a crop: "drop" leaves them out,
            "pad" takes them whole, missing frames behind their end.
        augment: A function of a batch and a ``torch.Generator`` that returns the batch changed at
            random, such as `Transpose`.
        seed: The seed of the random numbers.
        drop_last: Whether to leave out the last, smaller batch.
        rank: The number of this process.
        world_size: The number of processes that share the data set.

    Returns:
        The loader, which `pyro_seq.training.fit` can resume in the middle of an epoch.

    Raises:
        ValueError: If no sequence is long enough, or a number is out of its range.

    Example:
        >>> import torch
        >>> songs = SequenceDataset(torch.zeros(10, 40, 88), lengths=[40] * 9 + [12])
        >>> loader = random_crops(songs, 25, batch_size=4)
        >>> sorted(tuple(batch.x.shape) for batch in loader)
        [(1, 25, 88), (4, 25, 88), (4, 25, 88)]
    """
    rows = np.tile(_eligible(dataset, length, short), _positive(crops_per_sequence))
    sampler = BucketSampler(
        len(rows),
        batch_size,
        seed=seed,
        drop_last=drop_last,
        rank=rank,
        world_size=world_size,
    )
    return CropLoader(dataset, length, rows, sampler, augment=augment)


def fixed_crops(
    dataset: SequenceDataset,
    length: int,
    *,
    seed: int,
    crops_per_sequence: int = 1,
    short: Short = "drop",
) -> SequenceDataset:
    """Cut crops at random places once, to validate on the same frames after every epoch.

    Args:
        dataset: The sequences.
        length: The number of steps of a crop.
        seed: The seed of the random numbers.
        crops_per_sequence: The number of crops of each sequence.
        short: What becomes of sequences that are shorter than a crop: "drop" leaves them out,
            "pad" takes them whole, missing frames behind their end.

    Returns:
        The crops, in the order of the sequences.

    Raises:
        ValueError: If no sequence is long enough, or a number is out of its range.

    Example:
        >>> import torch
        >>> songs = SequenceDataset(torch.zeros(10, 40, 88))
        >>> fixed_crops(songs, 25, seed=0)[:].x.shape
        torch.Size([10, 25, 88])
    """
    rows = np.repeat(_eligible(dataset, length, short), _positive(crops_per_sequence))
    room = _lengths(dataset)[rows] - length
    first = torch.as_tensor(_draw(room, seed, 0))
    masked = _needs_mask(dataset, room)
    crops = _cut(dataset, torch.as_tensor(rows), first, length, masked)
    lengths = length + torch.as_tensor(np.minimum(room, 0))
    return SequenceDataset(*crops, lengths=lengths if masked else None)


def _lengths(dataset: SequenceDataset) -> NDArray[np.int64]:
    if dataset.lengths is None:
        return np.full(len(dataset), dataset.data.x.shape[1])
    return dataset.lengths.numpy()


def _positive(crops_per_sequence: int) -> int:
    if crops_per_sequence < 1:
        raise ValueError(
            f"crops_per_sequence: expected a positive number, got {crops_per_sequence}."
        )
    return crops_per_sequence


def _eligible(dataset: SequenceDataset, length: int, short: Short) -> NDArray[np.int64]:
    """Return the numbers of the sequences to cut crops from."""
    if length < 1:
        raise ValueError(f"length: expected a positive number of steps, got {length}.")
    if short not in ("drop", "pad"):
        raise ValueError(f"short: expected 'drop' or 'pad', got {short!r}.")
    lengths = _lengths(dataset)
    rows = np.arange(len(lengths)) if short == "pad" else (lengths >= length).nonzero()[0]
    if len(rows) == 0:
        raise ValueError(
            f"length: expected no more steps than the longest sequence has, {lengths.max()}, got "
            f"{length}. Cut shorter crops, or pad the sequences with short='pad'."
        )
    return rows


def _needs_mask(dataset: SequenceDataset, room: NDArray[np.int64]) -> bool:
    """Return whether a frame can be missing in a crop: hidden in its sequence, or behind it."""
    mask = dataset.data.mask
    if mask is None:
        return bool((room < 0).any())
    real = torch.arange(mask.shape[1]) < torch.as_tensor(_lengths(dataset))[:, None]
    return bool((room < 0).any()) or bool((real.to(mask.device) & ~mask).any())


def _draw(room: NDArray[np.int64], seed: int, epoch: int) -> NDArray[np.int64]:
    """Draw the first step of each crop; `room` is how far it can be moved."""
    return np.random.default_rng([seed, epoch, 1]).integers(np.maximum(room, 0) + 1)


def _cut(
    dataset: SequenceDataset, rows: Tensor, first: Tensor, length: int, masked: bool
) -> Batch:
    """Cut one crop from each of the rows, from its first step on."""
    data = dataset.data
    time, last = first[:, None] + torch.arange(length), data.x.shape[1] - 1
    rows, time = rows.to(data.x.device), time.to(data.x.device)
    where = (rows[:, None], time.clamp(max=last))
    x = data.x[where]
    if not x.is_floating_point():
        x = x.to(torch.get_default_dtype())
    mask = None
    if masked:
        mask = time <= last if data.mask is None else (time <= last) & data.mask[where]
    return Batch(x, mask, None if data.controls is None else data.controls[where])
