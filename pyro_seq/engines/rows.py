"""Rows of a ladder: an operation of the encoder, and the decoder's cell that mirrors it.

Row i leads from level i - 1 to level i. Its cell leads back: it reads the decoder at level i and
the encoder at level i - 1, and its output has the shape of level i - 1. The tables of the paper
are lists of rows.

References:
    Prémont-Schwarz, Ilin, Hao, Rasmus, Boney, Valpola (2017), Recurrent ladder networks, D.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from pyro_seq.nn.arguments import check_choice, check_positive
from pyro_seq.nn.space import Shape, conv_shape

__all__ = [
    "CELLS",
    "ConvLSTMRow",
    "ConvRow",
    "LSTMRow",
    "LinearRow",
    "PoolRow",
    "Row",
    "SoftMaxRow",
    "feed_forward",
    "row_shapes",
]

CELLS = ("g1", "conv_g1", "conv_g2", "conv_g3", "top", "broadcast", "none")
ACTIVATIONS = ("relu", "linear")
POOLS = ("max", "mean")


@dataclass(frozen=True, kw_only=True)
class Row:
    """What all rows have.

    Args:
        cell: The decoder's cell, one of :data:`CELLS`; ``top`` reads the level above alone;
            ``none``, in the first row alone, where the decoder ends above the frame.
        cell_kernel: Kernel of the cell; None for that of the row, three times the size of a pool.
    """

    cell: str = "conv_g3"
    cell_kernel: int | None = None

    @property
    def mirrored(self) -> tuple[int, int]:
        """Kernel and stride of the cell."""
        kernel, stride = (int(getattr(self, name, 1)) for name in ("kernel", "stride"))
        return self.cell_kernel or kernel, stride


@dataclass(frozen=True)
class ConvLSTMRow(Row):
    """A convolutional LSTM.

    Args:
        channels: Of its output.
        kernel: Size along each axis.
        stride: Of the convolution of its input.
        cell: See :class:`Row`.
        cell_kernel: See :class:`Row`.

    Example:
        >>> ConvLSTMRow(32, cell_kernel=9).mirrored
        (9, 1)
    """

    channels: int
    kernel: int = 3
    stride: int = 1


@dataclass(frozen=True)
class ConvRow(Row):
    """A convolution, normalised, and its nonlinearity.

    Args:
        channels: Of its output.
        kernel: Size along each axis.
        stride: Of the convolution.
        activation: ``relu`` or ``linear``.
        cell: See :class:`Row`.
        cell_kernel: See :class:`Row`.
    """

    channels: int
    kernel: int = 3
    stride: int = 1
    activation: str = "relu"


@dataclass(frozen=True)
class PoolRow(Row):
    """A pool, along every axis.

    Args:
        size: Places that become one; also the stride.
        kind: ``max`` or ``mean``.
        cell: See :class:`Row`.
        cell_kernel: See :class:`Row`.
    """

    size: int = 2
    kind: str = "max"

    @property
    def mirrored(self) -> tuple[int, int]:
        """Kernel and stride of the cell."""
        return self.cell_kernel or 3 * self.size, self.size


@dataclass(frozen=True)
class LinearRow(Row):
    """A dense layer over all that is below, normalised, and its nonlinearity.

    Args:
        units: Of its output.
        activation: ``relu`` or ``linear``.
        cell: See :class:`Row`.
        cell_kernel: Of no use.
    """

    units: int
    activation: str = "relu"
    cell: str = field(default="g1", kw_only=True)


@dataclass(frozen=True)
class LSTMRow(Row):
    """An LSTM over all that is below.

    Args:
        units: Of its output.
        normalised: Whether each of its terms is normalised, as in a convolutional LSTM.
        cell: See :class:`Row`.
        cell_kernel: Of no use.
    """

    units: int
    normalised: bool = False
    cell: str = field(default="g1", kw_only=True)


@dataclass(frozen=True)
class SoftMaxRow:
    """The head: class logits, linear in all of the level below. It comes last.

    Args:
        classes: Their number.
        project: False where the units below are the logits themselves.
        dropout: Probability that a unit below is dropped in training.
    """

    classes: int
    project: bool = True
    dropout: float = 0.0


def row_shapes(rows: Sequence[Row], frame_shape: Sequence[int]) -> tuple[Shape, ...]:
    """Shapes of all levels, the frame's first.

    Args:
        rows: Of the encoder, without the head.
        frame_shape: `(channels, *space)`.

    Raises:
        TypeError: When a size is no int, with the table of shapes too.
        ValueError: When a row does not fit the one below, or is wrong in itself; the message shows
            the table of shapes up to it.

    Example:
        >>> row_shapes([ConvRow(8), PoolRow(2), LSTMRow(4)], (1, 6, 6))
        ((1, 6, 6), (8, 6, 6), (8, 3, 3), (4,))
    """
    shapes: list[Shape] = [tuple(frame_shape)]
    for number, row in enumerate(rows, 1):
        try:
            _check_row(row, number)
            shapes.append(_shape_after(row, shapes[-1]))
        except (TypeError, ValueError) as error:
            raise type(error)(row_error(rows, shapes, number, error)) from None
    return tuple(shapes)


def row_error(rows: Sequence[Row], shapes: Sequence[Shape], number: int, error: Exception) -> str:
    """A message that shows the shapes below the row of that number, counted from 1."""
    below = zip(rows, shapes[1:number], strict=False)
    table = [f"0. frame: {shapes[0]}", *(f"{i}. {r}: {s}" for i, (r, s) in enumerate(below, 1))]
    head = f"rows: row {number}, {rows[number - 1]}, does not fit: {error}\nShapes so far:"
    return "\n  ".join([head, *table])


def feed_forward(rows: Sequence[Row | SoftMaxRow]) -> list[Row | SoftMaxRow]:
    """The rows with every recurrent one replaced by the like without recurrence.

    Example:
        >>> feed_forward([LSTMRow(4)])
        [LinearRow(cell='g1', cell_kernel=None, units=4, activation='relu')]
    """
    return [_without_recurrence(row) for row in rows]


def _without_recurrence(row: Row | SoftMaxRow) -> Row | SoftMaxRow:
    if isinstance(row, ConvLSTMRow):
        return ConvRow(
            row.channels, row.kernel, row.stride, cell=row.cell, cell_kernel=row.cell_kernel
        )
    return LinearRow(row.units, cell=row.cell) if isinstance(row, LSTMRow) else row


def _check_row(row: Row, number: int) -> None:
    if not isinstance(row, (ConvLSTMRow, ConvRow, PoolRow, LinearRow, LSTMRow)):
        raise ValueError("expected a row of pyro_seq.engines; a SoftMaxRow comes last")
    for name, choices in (("cell", CELLS), ("activation", ACTIVATIONS), ("kind", POOLS)):
        check_choice(name, getattr(row, name, choices[0]), choices)
    if row.cell == "none" and number > 1:
        raise ValueError("cell may be 'none' in the first row alone")
    for name in ("channels", "kernel", "stride", "size", "units", "cell_kernel"):
        size = getattr(row, name, None)
        if size is not None:
            check_positive(**{name: size})


def _shape_after(row: Row, shape: Shape) -> Shape:
    if isinstance(row, (LinearRow, LSTMRow)):
        return (row.units,)
    if isinstance(row, (ConvRow, ConvLSTMRow)):
        if len(shape) == 1:
            raise ValueError("a convolution needs maps below, not units")
        return conv_shape(shape, row.channels, row.kernel, row.stride)
    assert isinstance(row, PoolRow)
    after = (shape[0], *(n // row.size for n in shape[1:]))
    if len(shape) == 1 or not math.prod(after):
        raise ValueError(f"a pool of {row.size} does not fit maps of {shape[1:]}")
    return after
