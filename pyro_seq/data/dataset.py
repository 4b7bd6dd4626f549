"""Data sets of sequences in memory."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from pyro_seq.data.batch import Batch, check_batch

__all__ = ["SequenceDataset"]


class SequenceDataset(Dataset[Batch]):
    """Sequences that fit into memory.

    :func:`~pyro_seq.data.batches` makes batches of them. So does torch's loader, whose own way to
    make a batch of samples knows no None: give it numbers in groups,
    ``DataLoader(dataset, sampler=BucketSampler(len(dataset), 32), batch_size=None)``.

    Args:
        x: The observations, (sequences, time, *frame), of any type: bytes and bools stay so in
            memory, and each batch of them is converted to floats of the same values.
        mask: True where a frame was observed, bool (sequences, time); None if all were.
        controls: The known inputs, (sequences, time, control), or None.
        lengths: The number of steps of each padded sequence, (sequences,); what lies behind them
            is missing, and batches are cut to the longest of theirs. None: no sequence is padded.

    Raises:
        ValueError: If a shape is wrong, or an observed frame or a control is not finite.
        TypeError: If an argument is no array of numbers, or the mask is not of bools.

    Example:
        >>> import torch
        >>> dataset = SequenceDataset(torch.zeros(8, 20, 1, 32, 32, dtype=torch.uint8))
        >>> dataset[[0, 5]].x.shape, dataset[:3].x.shape, dataset[0].x.dtype
        (torch.Size([2, 20, 1, 32, 32]), torch.Size([3, 20, 1, 32, 32]), torch.float32)
    """

    def __init__(
        self,
        x: Tensor | NDArray,
        mask: Tensor | NDArray | None = None,
        controls: Tensor | NDArray | None = None,
        *,
        lengths: Tensor | Sequence[int] | None = None,
    ) -> None:
        data = Batch(
            _tensor("x", x),
            None if mask is None else _tensor("mask", mask),
            None if controls is None else _tensor("controls", controls),
        )
        self.lengths = None if lengths is None else torch.as_tensor(lengths).cpu()
        self.data = data if self.lengths is None else self._mark_padding(data, self.lengths)
        check_batch(*self.data)

    @staticmethod
    def _mark_padding(data: Batch, lengths: Tensor) -> Batch:
        """Return the data with mask False behind the length of each sequence."""
        sequences, time = data.x.shape[:2]
        if lengths.shape != (sequences,) or not bool(((lengths > 0) & (lengths <= time)).all()):
            raise ValueError(
                f"lengths: expected {sequences} numbers from 1 to {time}, one a sequence, got "
                f"shape {tuple(lengths.shape)} and values from {lengths.min()} to {lengths.max()}."
            )
        real = (torch.arange(time) < lengths[:, None]).to(data.x.device)
        return data._replace(mask=real if data.mask is None else data.mask & real)

    def __len__(self) -> int:
        return len(self.data.x)

    def __getitem__(self, index: int | slice | Sequence[int] | NDArray[np.int64]) -> Batch:
        """Return one sequence, or the sequences of several numbers as a batch.

        Args:
            index: A number, several, or a slice.

        Returns:
            The tensors (time, ...) of one sequence, or (batch, time, ...) of several; x in floats.
        """
        if isinstance(index, slice):
            index = range(len(self))[index]
        rows = torch.as_tensor(index, dtype=torch.long)
        time = None if self.lengths is None else int(self.lengths[rows].max())
        rows = rows.to(self.data.x.device)
        x, mask, controls = (None if part is None else part[rows, :time] for part in self.data)
        assert x is not None
        if not x.is_floating_point():
            x = x.to(torch.get_default_dtype())
        return Batch(x, mask, controls)

    def to(self, device: torch.device | str) -> SequenceDataset:
        """Return the data set in the memory of another device, where it makes its batches."""
        return SequenceDataset(*self.data.to(device), lengths=self.lengths)


def _tensor(name: str, value: Tensor | NDArray) -> Tensor:
    """The value as a tensor, or an error that says what to do with other things."""
    if isinstance(value, Batch):
        raise TypeError(f"{name}: expected a tensor, got a Batch. Use SequenceDataset(*batch).")
    try:
        return torch.as_tensor(value)
    except (RuntimeError, TypeError, ValueError) as error:
        raise TypeError(
            f"{name}: expected a tensor or an array of numbers, got {type(value).__name__} "
            f"({error}). Sequences of different lengths become one by pad_sequences."
        ) from error
