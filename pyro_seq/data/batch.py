"""Batches of sequences: observations, the mask of what was observed, and controls."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from numpy.typing import NDArray
from torch import Tensor

__all__ = ["Batch", "as_batch", "check_batch", "pad_sequences"]


class Batch(NamedTuple):
    """A batch of sequences, in the order of the arguments of every model and guide.

    Attributes:
        x: The observations, (batch, time, *frame).
        mask: True where a frame was observed, bool (batch, time); None if all were. What lies
            under False, missing frames and padding, changes no result and may be NaN.
        controls: The known inputs, (batch, time, control), or None.

    Example:
        >>> import torch
        >>> mask = torch.tensor([[True, True, False], [True, False, True]])
        >>> batch = Batch(torch.zeros(2, 3, 4), mask)
        >>> batch.lengths.tolist(), batch.observed.tolist()
        ([2, 3], [2, 2])
    """

    x: Tensor
    mask: Tensor | None = None
    controls: Tensor | None = None

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> Batch:
        """Return the batch on another device.

        Args:
            device: Where to.
            non_blocking: Whether the copy may run on while the host does something else.

        Returns:
            The batch; tensors that are there already are not copied.
        """
        return Batch._make(
            None if part is None else part.to(device, non_blocking=non_blocking) for part in self
        )

    def pin_memory(self) -> Batch:
        """Return the batch in page-locked host memory, from where it reaches a GPU faster."""
        return Batch._make(None if part is None else part.pin_memory() for part in self)

    @property
    def lengths(self) -> Tensor:
        """The number of steps of each sequence up to its last observed one, long (batch,)."""
        if self.mask is None:
            return self.x.new_full(self.x.shape[:1], self.x.shape[1], dtype=torch.long)
        steps = torch.arange(1, self.mask.shape[1] + 1, device=self.mask.device)
        return torch.where(self.mask, steps, 0).amax(dim=1)

    @property
    def observed(self) -> Tensor:
        """The number of observed steps of each sequence, long (batch,)."""
        return self.lengths if self.mask is None else self.mask.sum(dim=1)


def as_batch(batch: Tensor | tuple[Tensor, Tensor | None, Tensor | None]) -> Batch:
    """A batch from a batch, a tuple in its order, or x alone.

    Raises:
        TypeError: If it is something else, such as a :class:`Recall`, which has a batch.
    """
    held = getattr(batch, "batch", None)
    if isinstance(held, Batch):
        raise TypeError(
            "a batch must be a Batch, or frames in a tensor (batch, time, *frame); got a "
            f"{type(batch).__name__}. Use its .batch"
        )
    whole = Batch(*batch) if isinstance(batch, tuple) else Batch(batch)
    if not isinstance(whole.x, Tensor):
        raise TypeError(
            "a batch must be a Batch, or frames in a tensor (batch, time, *frame); got "
            f"{type(whole.x).__name__}. Use torch.as_tensor, or dataset[:] of a SequenceDataset"
        )
    return whole


def check_batch(x: Tensor, mask: Tensor | None = None, controls: Tensor | None = None) -> None:
    """Raise if three tensors do not make a batch.

    The check of values waits for the device: call it where data comes in, not in a training step.

    Args:
        x: The observations, (batch, time, *frame).
        mask: True where a frame was observed, bool (batch, time), or None.
        controls: The known inputs, (batch, time, control), or None.

    Raises:
        ValueError: If a shape is wrong, or an observed frame or a control is not finite.
        TypeError: If the mask is not of bools.
    """
    if x.ndim < 3 or 0 in x.shape:
        raise ValueError(
            "x: expected at least one sequence of at least one frame, (batch, time, *frame), got "
            f"shape {tuple(x.shape)}. A single sequence needs a batch dimension: x[None]."
        )
    if mask is not None:
        _check_mask(x, mask)
    if controls is not None:
        _check_controls(x, controls)
    if x.is_floating_point():
        _check_frames(x, mask)


def _check_mask(x: Tensor, mask: Tensor) -> None:
    batch, time = x.shape[:2]
    if mask.dtype != torch.bool:
        raise TypeError(
            f"mask: expected bools, True where a frame was observed, got {mask.dtype}. "
            "Use mask.bool()."
        )
    if mask.shape != (batch, time):
        raise ValueError(
            f"mask: expected one bool for each frame of x, (batch, time) = ({batch}, {time}), "
            f"got shape {tuple(mask.shape)}. Sequences of different lengths need pad_sequences."
        )


def _check_controls(x: Tensor, controls: Tensor) -> None:
    batch, time = x.shape[:2]
    if controls.ndim != 3 or controls.shape[:2] != (batch, time):
        raise ValueError(
            f"controls: expected (batch, time, control) = ({batch}, {time}, control), got shape "
            f"{tuple(controls.shape)}. A single control per step needs a last dimension of 1."
        )
    if not bool(controls.isfinite().all()):
        raise ValueError(
            "controls: expected a finite number at every step, also where the frame is missing, "
            "got NaN or infinity. Fill in what was applied, for example with torch.nan_to_num."
        )


def _check_frames(x: Tensor, mask: Tensor | None) -> None:
    broken = ~x.isfinite().flatten(2).all(dim=2)
    if mask is not None:
        broken = broken & mask
    places = broken.nonzero().tolist()
    if places:
        sequence, step = places[0]
        raise ValueError(
            "x: expected finite numbers in every observed frame, got NaN or infinity in "
            f"{len(places)} of them, first in sequence {sequence} at step {step}. A frame with "
            "missing values is missing: set its mask to False."
        )


def pad_sequences(
    sequences: Sequence[Tensor | NDArray],
    masks: Sequence[Tensor | NDArray] | None = None,
    controls: Sequence[Tensor | NDArray] | None = None,
) -> Batch:
    """Pad sequences of different lengths with zeros to one batch, whose mask is False there.

    Args:
        sequences: The observations of each sequence, (time, *frame); time may differ.
        masks: True where a frame was observed, bool (time,) each; None if all were.
        controls: The known inputs of each sequence, (time, control), or None.

    Returns:
        The batch, as long as the longest sequence. Its mask is never None.

    Raises:
        ValueError: If there is no sequence, or shapes do not fit together.
        TypeError: If a mask is not of bools.

    Example:
        >>> import torch
        >>> pad_sequences([torch.ones(3, 2), torch.ones(1, 2)]).mask.tolist()
        [[True, True, True], [True, False, False]]
    """
    if len(sequences) == 0:
        raise ValueError("sequences: expected at least one sequence (time, *frame), got none.")
    x = [torch.as_tensor(sequence) for sequence in sequences]
    _check_frame_shapes(x)
    if masks is None:
        observed = [torch.ones(len(sequence), dtype=torch.bool) for sequence in x]
    else:
        observed = _check_lengths("masks", masks, x)
    inputs = None if controls is None else _stack(_check_lengths("controls", controls, x))
    batch = Batch(_stack(x), _stack(observed).to(x[0].device), inputs)
    check_batch(*batch)
    return batch


def _stack(sequences: list[Tensor]) -> Tensor:
    return torch.nn.utils.rnn.pad_sequence(sequences, batch_first=True)


def _check_frame_shapes(sequences: list[Tensor]) -> None:
    frame = sequences[0].shape[1:]
    for number, sequence in enumerate(sequences):
        if sequence.ndim < 2 or sequence.shape[1:] != frame:
            raise ValueError(
                f"sequences[{number}]: expected (time, *frame) with the frame shape "
                f"{tuple(frame)} of sequences[0], got shape {tuple(sequence.shape)}."
            )


def _check_lengths(
    name: str, parts: Sequence[Tensor | NDArray], sequences: list[Tensor]
) -> list[Tensor]:
    """Return the parts as tensors, once each is known to be as long as its sequence."""
    if len(parts) != len(sequences):
        raise ValueError(f"{name}: expected {len(sequences)}, one a sequence, got {len(parts)}.")
    tensors = [torch.as_tensor(part) for part in parts]
    for number, (part, sequence) in enumerate(zip(tensors, sequences, strict=True)):
        if part.ndim == 0 or len(part) != len(sequence):
            raise ValueError(
                f"{name}[{number}]: expected as many steps as sequences[{number}], "
                f"{len(sequence)}, got shape {tuple(part.shape)}."
            )
    return tensors
