"""Operations of the encoder of a ladder, each called with (e, d, state, iteration).

e comes from the level below, d from the decoder at the level of the output one iteration before,
or is None where the row has no such link; state is that of a recurrent row, else None.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Size, Tensor, nn
from torch.nn import functional

from pyro_seq.engines.rows import ConvLSTMRow, ConvRow, LinearRow, LSTMRow, PoolRow, Row, Shape
from pyro_seq.nn.conv_lstm import ConvLSTM, ConvLSTMState
from pyro_seq.nn.norms import unit_norm
from pyro_seq.nn.recurrent import RepeatedLSTMCell
from pyro_seq.nn.space import bottom_up, side_kernel

__all__ = ["FeedForward", "LSTM", "Pool", "Recurrent", "encoder_row"]


class Recurrent(nn.Module):
    """A convolutional LSTM, or one over units."""

    recurrent = True

    def __init__(self, layer: ConvLSTM) -> None:
        super().__init__()
        self.layer, self.linked = layer, layer.feedback is not None

    def initial_state(self, batch_shape: Size) -> ConvLSTMState:
        """Zeros."""
        return self.layer.initial_state(batch_shape)

    def forward(
        self, e: Tensor, d: Tensor | None, state: ConvLSTMState, iteration: Tensor
    ) -> tuple[Tensor, ConvLSTMState]:
        """Output and next state."""
        return self.layer.step(state, e.reshape(len(e), *self.layer.inputs), d, iteration)


class LSTM(nn.Module):
    """An LSTM over all units below and, where it has a link, the decoder's."""

    recurrent = True

    def __init__(self, inputs: int, units: int, linked: bool, zero: bool) -> None:
        super().__init__()
        self.linked = linked
        self.cell = RepeatedLSTMCell(inputs + (units if linked else 0), units)
        with torch.no_grad():  # remember by default: the forget gate starts open
            self.cell.bias_ih[units : 2 * units] = 1.0
            self.cell.bias_hh[units : 2 * units] = 0.0
            if linked and zero:
                self.cell.weight_ih[:, inputs:] = 0.0

    def initial_state(self, batch_shape: Size) -> ConvLSTMState:
        """Zeros."""
        zeros = self.cell.weight_hh.new_zeros(*batch_shape, self.cell.hidden_size)
        return ConvLSTMState(zeros, zeros)

    def forward(
        self, e: Tensor, d: Tensor | None, state: ConvLSTMState, iteration: Tensor
    ) -> tuple[Tensor, ConvLSTMState]:
        """Output and next state."""
        inputs = e.flatten(1) if d is None else torch.cat([e.flatten(1), d], 1)
        h, c = self.cell(inputs, tuple(state))
        return h, ConvLSTMState(h, c)


class FeedForward(nn.Module):
    r"""A convolution or a dense layer, :math:`e' = \mathrm{relu}(\mathrm{N}(W e + W_d d))`.

    With a link that starts at zero the second term has a normalisation of its own.
    """

    recurrent = False

    def __init__(
        self,
        shapes: tuple[Shape, Shape],
        kernel: int,
        stride: int,
        activation: str,
        norm: str,
        iterations: int,
        linked: bool,
        zero: bool,
    ) -> None:
        super().__init__()
        (below, shape), self.linked = shapes, linked
        self.below = below if len(shape) > 1 else (math.prod(below),)
        self.input = bottom_up(self.below, shape[0], kernel, stride)
        self.norm = unit_norm(norm, shape[0], iterations)
        self.feedback = bottom_up(shape, shape[0], side_kernel(kernel)) if linked else None
        self.norm_feedback = unit_norm(norm, shape[0], iterations) if linked and zero else None
        if linked and zero:
            nn.init.zeros_(self.get_parameter("norm_feedback.weight"))
        self.activate = activation == "relu"

    def forward(
        self, e: Tensor, d: Tensor | None, state: None, iteration: Tensor
    ) -> tuple[Tensor, None]:
        """Output; there is no state."""
        u = self.input(e.reshape(len(e), *self.below))
        if self.feedback is None:
            u = self.norm(u, iteration)
        elif self.norm_feedback is None:
            u = self.norm(u + self.feedback(d), iteration)
        else:
            u = self.norm(u, iteration) + self.norm_feedback(self.feedback(d), iteration)
        return (u.relu() if self.activate else u), None


class Pool(nn.Module):
    """A pool."""

    recurrent = linked = False

    def __init__(self, dims: int, size: int, kind: str) -> None:
        super().__init__()
        self.pool = getattr(functional, f"{'avg' if kind == 'mean' else 'max'}_pool{dims}d")
        self.size = size

    def forward(self, e: Tensor, d: None, state: None, iteration: Tensor) -> tuple[Tensor, None]:
        """Output; there is no state."""
        return self.pool(e, self.size), None


def encoder_row(
    row: Row, shapes: tuple[Shape, Shape], linked: bool, zero: bool, norms: dict[str, Any]
) -> nn.Module:
    """The operation of a row.

    Args:
        row: What it is.
        shapes: Of its input and its output.
        linked: Whether it reads the decoder.
        zero: Whether that link starts at zero.
        norms: ``rows``, ``cells`` and ``iterations`` of normalisation.
    """
    below, shape = shapes
    if isinstance(row, PoolRow):
        return Pool(len(below) - 1, row.size, row.kind)
    if isinstance(row, (ConvRow, LinearRow)):
        kernel, stride = getattr(row, "kernel", 1), getattr(row, "stride", 1)
        return FeedForward(
            shapes, kernel, stride, row.activation, norms["rows"], norms["iterations"],
            linked, zero,
        )  # fmt: skip
    if isinstance(row, LSTMRow) and not row.normalised:
        return LSTM(math.prod(below), row.units, linked, zero)
    options = {
        "feedback": linked,
        "feedback_gain": 0.0 if zero else 1.0,
        "norm": norms["cells"],
        "iterations": norms["iterations"],
    }
    if isinstance(row, ConvLSTMRow):
        return Recurrent(ConvLSTM(below, row.channels, row.kernel, row.stride, **options))
    return Recurrent(ConvLSTM((math.prod(below),), shape[0], 1, **options))
