r"""The recurrent ladder network: an encoder and a decoder that read each other, again and again.

.. math::
    e_l(t), s_l(t) &= f_l(e_{l-1}(t), d_l(t-1), s_l(t-1)), \quad l = 1 \dots L, \qquad e_0(t) = x_t
    \\
    d_l(t) &= g_l(e_l(t), d_{l+1}(t)), \quad l = L - 1 \dots 0, \qquad d_L(t) = e_L(t)

References:
    Prémont-Schwarz, Ilin, Hao, Rasmus, Boney, Valpola (2017), Recurrent ladder networks.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Size, Tensor, nn

from pyro_seq.engines.base import Engine
from pyro_seq.engines.encoder import encoder_row
from pyro_seq.engines.rows import (
    ConvLSTMRow,
    LinearRow,
    LSTMRow,
    PoolRow,
    Row,
    Shape,
    SoftMaxRow,
    row_error,
    row_shapes,
)
from pyro_seq.nn.arguments import check_choice, check_positive
from pyro_seq.nn.conv_lstm import ConvLSTMState
from pyro_seq.nn.ladder_cells import G1, Broadcast, ConvG1, ConvG2, ConvG3
from pyro_seq.ops.trees import flatten_batch, unflatten_batch
from pyro_seq.plugins import register

__all__ = ["RLadder", "RLadderOutput", "RLadderState"]

LINKS = ("all", "recurrent", "none")
STARTS = ("zero", "random")
NORMS = {"layer": ("layer", "layer"), "batch": ("batch", "batch"), "mixed": ("batch", "layer")}


class RLadderState(NamedTuple):
    """What a ladder knows.

    Attributes:
        cells: Output and cell of each recurrent row, `(*batch, *shape)`.
        d: The decoder at each row that reads it, `(*batch, *shape)`.
        iteration: How many were made, int64 `(*batch,)`; batch normalisation reads it.
    """

    cells: tuple[ConvLSTMState, ...]
    d: tuple[Tensor, ...]
    iteration: Tensor


class RLadderOutput(NamedTuple):
    r"""What a ladder says at one step.

    Attributes:
        e: The encoder at each level, :math:`e_0 = x_t` first, `(*batch, *shape)`.
        d: The decoder at each level, from the lowest that there is; empty without a decoder.
        logits: Of the classes, `(*batch, classes)`; None without a head.
        prediction: :math:`d_0`, of the shape of a frame; None where the decoder does not reach it.
    """

    e: tuple[Tensor, ...]
    d: tuple[Tensor, ...]
    logits: Tensor | None
    prediction: Tensor | None


@register("engines", "rladder")
class RLadder(Engine):
    r"""A recurrent ladder network.

    At every step the whole encoder runs first, then the whole decoder. The cell of row i is the
    mirror of its operation: it reads the decoder at level i and the encoder at level i - 1.

    Args:
        frame_shape: `(channels, *space)` with no axis, one or two.
        rows: From the bottom to the top, with a :class:`~pyro_seq.engines.SoftMaxRow` last if
            there are classes.
        d2e: Which rows read the decoder of the step before: ``all`` that have weights,
            the ``recurrent`` ones below the top, where d is e, or ``none``.
        d2e_init: ``zero``: these links are normalised by themselves with a gain that starts at
            zero, so that training starts with the network without; ``random``: as other weights,
            and in rows without recurrence inside the normalisation of the row, as in the paper.
        decoder: False for the encoder alone.
        norm: ``layer``, ``batch``, or the paper's ``mixed``: batch normalisation in rows without
            recurrence, layer normalisation elsewhere. With batch normalisation a sequence depends
            on its batch in training, and no bound holds.
        iterations: For how many iterations batch statistics are kept apart.
        stable: Whether the gates of G1 cells go through one more sigmoid.

    Attributes:
        shapes: Of all levels, the frame's first.

    Raises:
        TypeError: When the rows are no sequence, or a size is no int.
        ValueError: When rows do not fit, with the table of shapes, or for an unknown option.

    Example:
        >>> from pyro_seq.engines import ConvRow, ConvLSTMRow, LSTMRow, PoolRow, SoftMaxRow
        >>> rows = [ConvLSTMRow(4), PoolRow(2), ConvRow(8), LSTMRow(6), SoftMaxRow(10)]
        >>> ladder = RLadder((1, 8, 8), rows)
        >>> state = ladder.initial_state(torch.Size([3]))
        >>> output, state = ladder.step(state, torch.zeros(3, 1, 8, 8))
        >>> output.logits.shape, output.prediction.shape
        (torch.Size([3, 10]), torch.Size([3, 1, 8, 8]))
        >>> [tuple(d.shape[1:]) for d in output.d]
        [(1, 8, 8), (4, 8, 8), (4, 4, 4), (8, 4, 4), (6,)]
    """

    def __init__(
        self,
        frame_shape: Sequence[int],
        rows: Sequence[Row | SoftMaxRow],
        *,
        d2e: str = "recurrent",
        d2e_init: str = "zero",
        decoder: bool = True,
        norm: str = "layer",
        iterations: int = 8,
        stable: bool = False,
    ) -> None:
        super().__init__(frame_shape)
        check_choice("d2e", d2e, LINKS)
        check_choice("d2e_init", d2e_init, STARTS)
        check_choice("norm", norm, NORMS)
        self.rows, head = _split(rows)
        self.shapes = row_shapes(self.rows, frame_shape)
        norms = dict(zip(("rows", "cells"), NORMS[norm], strict=True), iterations=iterations)
        links = _links(self.rows, d2e if decoder else "none")
        pairs = [*zip(self.shapes, self.shapes[1:], strict=False)]
        self.encoder = nn.ModuleList(
            encoder_row(row, pair, link, d2e_init == "zero", norms)
            for row, pair, link in zip(self.rows, pairs, links, strict=True)
        )
        self.decoder = nn.ModuleList()
        for number, pair in enumerate(pairs if decoder else [], 1):
            try:
                cell = _decoder_cell(self.rows[number - 1], pair, norms, stable)
            except ValueError as error:
                raise ValueError(row_error(self.rows, self.shapes, number, error)) from None
            self.decoder.extend([] if cell is None else [cell])
        self.decodes = decoder
        self.head = None if head is None else _head(head, self.shapes[-1])

    def initial_state(self, batch_shape: Size) -> RLadderState:
        """Zeros."""
        zeros = next(self.parameters()).new_zeros
        rows: list[Any] = [*self.encoder]
        shapes = (shape for row, shape in zip(rows, self.shapes[1:], strict=True) if row.linked)
        return RLadderState(
            tuple(row.initial_state(batch_shape) for row in rows if row.recurrent),
            tuple(zeros(*batch_shape, *shape) for shape in shapes),
            zeros(batch_shape, dtype=torch.long),
        )

    def step(self, state: RLadderState, x_t: Tensor) -> tuple[RLadderOutput, RLadderState]:
        """The encoder, then the decoder."""
        batch = self.check_frames(x_t)
        x, (before, links, iteration) = flatten_batch((x_t, state), batch)
        cells, old, e, after = iter(before), iter(links), [x], []
        for row in self.encoder:
            d = next(old) if row.linked else None
            now, cell = row(e[-1], d, next(cells) if row.recurrent else None, iteration)
            e.append(now)
            after += [cell] if row.recurrent else []
        d = self._top_down(e, iteration)
        kept = (d[level] for level, row in enumerate(self.encoder, 1) if row.linked)
        new = RLadderState(tuple(after), tuple(kept), iteration + 1)
        logits = None if self.head is None else self.head(e[-1])
        seen = tuple(d[level] for level in sorted(d))
        output = RLadderOutput(tuple(e), seen, logits, d.get(0))
        return unflatten_batch((output, new), batch)

    def _top_down(self, e: list[Tensor], iteration: Tensor) -> dict[int, Tensor]:
        """The decoder, by level; nothing where there is none."""
        if not self.decodes:
            return {}
        level = len(e) - 1
        d = {level: e[level]}
        for cell in reversed(self.decoder):
            d[level - 1] = cell(d[level], e[level - 1], iteration)
            level -= 1
        return d


def _split(rows: Sequence[Row | SoftMaxRow]) -> tuple[list[Row], SoftMaxRow | None]:
    """The rows of the encoder, and the head if there is one."""
    if not isinstance(rows, Sequence):
        raise TypeError(f"rows must be a sequence of rows; got {type(rows).__name__}")
    body: list[Any] = [*rows]
    head = body.pop() if body and isinstance(body[-1], SoftMaxRow) else None
    if not body:
        raise ValueError(f"rows must have one row or more below the head; got {list(rows)}")
    return body, head


def _links(rows: Sequence[Row], d2e: str) -> list[bool]:
    """Which rows read the decoder."""
    if d2e == "all":
        return [not isinstance(row, PoolRow) for row in rows]
    recurrent = [d2e == "recurrent" and isinstance(row, (ConvLSTMRow, LSTMRow)) for row in rows]
    return [*recurrent[:-1], False]


def _decoder_cell(
    row: Row, pair: tuple[Shape, Shape], norms: dict[str, Any], stable: bool
) -> nn.Module | None:
    """The cell that mirrors a row."""
    shape, top = pair
    options = {"norm": norms["cells"], "iterations": norms["iterations"]}
    gate = {**options, "stable": stable, "lateral": row.cell != "top"}
    dense = isinstance(row, (LinearRow, LSTMRow))
    if row.cell == "g1" or (row.cell == "top" and dense):
        return G1(top, shape, **gate)
    if row.cell in ("conv_g1", "top"):
        return ConvG1(top, shape, *row.mirrored, **gate)
    if row.cell in ("conv_g2", "conv_g3"):
        return {"conv_g2": ConvG2, "conv_g3": ConvG3}[row.cell](
            top, shape, *row.mirrored, **options
        )
    return Broadcast(top, shape) if row.cell == "broadcast" else None


def _head(head: SoftMaxRow, shape: Shape) -> nn.Module:
    """From the level at the top to the logits of the classes."""
    units = math.prod(shape)
    check_positive(2, classes=head.classes)
    if not head.project and units != head.classes:
        raise ValueError(
            f"classes must be the {units} units below where project=False; got {head.classes}"
        )
    last = nn.Linear(units, head.classes) if head.project else nn.Identity()
    return nn.Sequential(nn.Flatten(), nn.Dropout(head.dropout), last)
