r"""The baseline without an external memory: the recurrence of the VRNN.

.. math:: h_t = \mathrm{LSTM}(h_{t-1}, [\varphi(x_{t-1}), z_{t-1}, u_t]), \qquad
    \Psi_{t-1} = h_t

References:
    Chung, Kastner, Dinh, Goel, Courville, Bengio (2015), A recurrent latent variable model for
    sequential data.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Size, Tensor

from pyro_seq.memory.base import Context, Memory
from pyro_seq.nn.arguments import check_positive
from pyro_seq.nn.recurrent import RepeatedLSTMCell, lstm_step
from pyro_seq.plugins import register

__all__ = ["LSTMMemory", "LSTMState"]


class LSTMState(NamedTuple):
    """Output and cell of the LSTM, each `(*batch, hidden)`."""

    h: Tensor
    c: Tensor


@register("memories", "lstm")
class LSTMMemory(Memory):
    """An LSTM that remembers in its own state alone.

    It has the protocol of the memories, so that the prior of a step knows its control.

    Args:
        latent: Size of z.
        frame_features: Size of the features of the frame before, which it reads as the VRNN
            does; 0 for an LSTM over latents alone.
        hidden: Units.
        controls: Size of u, or 0.

    Example:
        >>> memory = LSTMMemory(latent=3, frame_features=2, hidden=8)
        >>> context, _ = memory(torch.randn(4, 6, 3), features=torch.randn(4, 6, 2))
        >>> context.features.shape, context.reads.shape
        (torch.Size([4, 6, 8]), torch.Size([4, 6, 0]))
    """

    def __init__(
        self, latent: int, frame_features: int, *, hidden: int = 200, controls: int = 0
    ) -> None:
        check_positive(hidden=hidden)
        super().__init__(latent, controls=controls, frame_features=frame_features)
        self.hidden = self.context = hidden
        self.reads = 0
        self.cell = RepeatedLSTMCell(frame_features + latent + controls, hidden)

    def initial_state(self, batch_shape: Size) -> LSTMState:
        """Zeros."""
        zeros = self.cell.weight_hh.new_zeros(*batch_shape, self.hidden)
        return LSTMState(zeros, zeros)

    def step(
        self,
        state: LSTMState,
        z: Tensor,
        u_t: Tensor | None = None,
        features: Tensor | None = None,
    ) -> tuple[Context, LSTMState]:
        """One step of the LSTM."""
        inputs = torch.cat(self.inputs(z, u_t, features), -1)
        h, c = lstm_step(self.cell, inputs, state.h, state.c)
        return Context(h, h[..., :0], h.new_zeros(*h.shape[:-1], 0, 0)), LSTMState(h, c)
