r"""The convolutional LSTM, with a stride, normalised inputs and a state that is passed in and out.

.. math::
    i, f, o, u &= \mathrm{N}(W_x *_s x_t) + \mathrm{N}(W_h * h_{t-1})
        + \mathrm{N}(W_d * d_{t-1}) + b \\
    c_t &= \mathrm{sigm}(f) \odot c_{t-1} + \mathrm{sigm}(i) \odot \tanh(u), \qquad
    h_t = \mathrm{sigm}(o) \odot \tanh(c_t)

References:
    Shi, Chen, Wang, Yeung, Wong, Woo (2015), Convolutional LSTM network.
    Prémont-Schwarz, Ilin, Hao, Rasmus, Boney, Valpola (2017), Recurrent ladder networks, A.4.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Size, Tensor, nn

from pyro_seq.nn.norms import unit_norm
from pyro_seq.nn.repeated import repeated
from pyro_seq.nn.space import bottom_up, conv_shape, side_kernel

__all__ = ["ConvLSTM", "ConvLSTMState"]


class ConvLSTMState(NamedTuple):
    """Output and cell, each `(*batch, channels, *space)`."""

    h: Tensor
    c: Tensor


class ConvLSTM(nn.Module):
    r"""A convolutional LSTM over maps with no axis, one or two.

    Each term has its own normalisation N, all share one bias, and the forget gate starts open. The
    recurrent kernel has the size of the input's, or, where that is even, the next smaller odd one
    that fits its stride.

    Args:
        shape: `(channels, *space)` of the input; of units, `(units,)`.
        channels: Of the output.
        kernel: Size of the kernel along each axis.
        stride: Of the convolution of the input.
        feedback: Whether there is a third input d, of the shape of the output.
        feedback_gain: What the gain of its normalisation starts with; at 0 the network begins
            as the one without.
        norm: `"layer"`, `"batch"` or `"none"`; see :func:`~pyro_seq.nn.unit_norm`.
        iterations: For how many iterations batch statistics are kept apart.

    Attributes:
        shape: `(channels, *space)` of the output.

    Raises:
        ValueError: For a kernel that does not fit, an unknown norm, or a gain without a norm.

    Example:
        >>> layer = ConvLSTM((1, 16, 16), 8, stride=2)
        >>> h, state = layer(torch.zeros(4, 10, 1, 16, 16))
        >>> h.shape, state.c.shape
        (torch.Size([4, 10, 8, 8, 8]), torch.Size([4, 8, 8, 8]))
        >>> h, state = layer(torch.zeros(4, 3, 1, 16, 16), state)  # goes on
    """

    def __init__(
        self,
        shape: Sequence[int],
        channels: int,
        kernel: int = 3,
        stride: int = 1,
        *,
        feedback: bool = False,
        feedback_gain: float = 1.0,
        norm: str = "layer",
        iterations: int = 8,
    ) -> None:
        super().__init__()
        self.inputs = tuple(shape)
        self.shape = conv_shape(shape, channels, kernel, stride)
        side, gates = side_kernel(kernel), 4 * channels
        self.norm = norm
        self.input = bottom_up(shape, gates, kernel, stride)
        self.recurrent = bottom_up(self.shape, gates, side)
        self.norm_input = unit_norm(norm, gates, iterations)
        self.norm_recurrent = unit_norm(norm, gates, iterations)
        self.bias = nn.Parameter(torch.zeros(gates))
        with torch.no_grad():
            self.bias[channels : 2 * channels] = 1.0
        self.feedback = bottom_up(self.shape, gates, side) if feedback else None
        self.norm_feedback = unit_norm(norm, gates, iterations) if feedback else None
        if feedback and feedback_gain != 1.0:
            if norm == "none":
                raise ValueError(f"feedback_gain needs a norm; got {feedback_gain}, norm='none'")
            nn.init.constant_(self.get_parameter("norm_feedback.weight"), feedback_gain)

    def initial_state(self, batch_shape: Size) -> ConvLSTMState:
        """Zeros."""
        zeros = self.bias.new_zeros(*batch_shape, *self.shape)
        return ConvLSTMState(zeros, zeros)

    def step(
        self,
        state: ConvLSTMState,
        x_t: Tensor,
        d: Tensor | None = None,
        iteration: Tensor | None = None,
    ) -> tuple[Tensor, ConvLSTMState]:
        """One step.

        Args:
            state: The state before, `(batch, channels, *space)` each.
            x_t: `(batch, *inputs)`.
            d: The third input, of the shape of the output, if there is one.
            iteration: How many steps each sample has made, int64 `(batch,)`; batch
                normalisation reads it.

        Returns:
            The output h and the state after the step.
        """
        return self._recur(state, self._share(x_t, iteration), d, iteration)

    def forward(
        self, x: Tensor, state: ConvLSTMState | None = None
    ) -> tuple[Tensor, ConvLSTMState]:
        """Many steps of a layer without a third input.

        Args:
            x: `(batch, time, *inputs)`.
            state: The state to go on from; None for zeros.

        Returns:
            The outputs `(batch, time, *shape)` and the state after the last step.

        Raises:
            ValueError: When x has another shape, or the layer has a third input.
        """
        if x.dim() != 2 + len(self.inputs) or x.shape[2:] != self.inputs or not x.shape[1]:
            raise ValueError(
                f"x must be (batch, time, {', '.join(map(str, self.inputs))}) of one step or "
                f"more; got shape {tuple(x.shape)}"
            )
        if self.feedback is not None:
            raise ValueError("a layer with feedback must be called step by step; use step()")
        state = self.initial_state(x.shape[:1]) if state is None else state
        outputs = []
        with repeated(x.shape[1]):
            for number, share in enumerate(self._shares(x)):
                iteration = torch.full(x.shape[:1], number, device=x.device)
                h, state = self._recur(state, share, None, iteration)
                outputs.append(h)
        return torch.stack(outputs, 1), state

    def _shares(self, x: Tensor) -> Sequence[Tensor]:
        """What the input adds at each step; all at once, unless steps have own statistics."""
        if self.norm == "batch":
            counts = torch.arange(x.shape[1], device=x.device).unsqueeze(-1).expand(-1, len(x))
            return [self._share(x_t, t) for x_t, t in zip(x.unbind(1), counts, strict=True)]
        return self._share(x.transpose(0, 1).flatten(0, 1), None).unflatten(0, (-1, len(x)))

    def _share(self, x: Tensor, iteration: Tensor | None) -> Tensor:
        return self.norm_input(self.input(x), iteration, self.bias)

    def _recur(
        self,
        state: ConvLSTMState,
        share: Tensor,
        d: Tensor | None,
        iteration: Tensor | None,
    ) -> tuple[Tensor, ConvLSTMState]:
        gates = share + self.norm_recurrent(self.recurrent(state.h), iteration)
        if self.feedback is not None and self.norm_feedback is not None:
            gates = gates + self.norm_feedback(self.feedback(d), iteration)
        write, keep, read, new = gates.chunk(4, 1)
        c = torch.addcmul(keep.sigmoid() * state.c, write.sigmoid(), new.tanh())
        h = read.sigmoid() * c.tanh()
        return h, ConvLSTMState(h, c)
