r"""What NTM, LRU and DNC share: a controller that is given what was read before.

.. math:: h_t = \mathrm{LSTM}(h_{t-1}, [z_{t-1}, u_t, r_{t-1}]), \qquad
    \Psi_{t-1} = [r_t, h_t], \quad r_t = [w^1 M, \dots, w^R M]
"""

from __future__ import annotations

import torch
from torch import Tensor

from pyro_seq.memory.base import Context, Memory
from pyro_seq.memory.interface import RowWriter
from pyro_seq.nn.arguments import check_positive
from pyro_seq.nn.recurrent import RepeatedLSTMCell, lstm_step

__all__ = ["ControlledMemory"]


class ControlledMemory(Memory):
    """A memory that an LSTM writes and reads, and which has what it read as an input.

    Args:
        latent: Size of z.
        slots: Number of rows.
        heads: Number of read heads.
        hidden: Units of the controller.
        controls: Size of u, or 0.
        writer: What is written.
        context_includes_state: Whether the context has the controller's output beside the reads.

    Attributes:
        word: Size of a row.
    """

    def __init__(
        self,
        latent: int,
        *,
        slots: int,
        heads: int,
        hidden: int,
        controls: int,
        writer: RowWriter,
        context_includes_state: bool,
    ) -> None:
        check_positive(slots=slots, heads=heads, hidden=hidden)
        super().__init__(latent, slots=slots, heads=heads, controls=controls)
        self.hidden, self.word, self.writer = hidden, writer.word, writer
        self.reads = heads * self.word
        self.context_includes_state = context_includes_state
        self.context = self.reads + hidden * context_includes_state
        self.cell = RepeatedLSTMCell(latent + controls + self.reads, hidden)

    def control(
        self,
        h: Tensor,
        c: Tensor,
        reads: Tensor,
        z: Tensor,
        u_t: Tensor | None,
        features: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        """One step of the controller: its output and its cell."""
        inputs = torch.cat([*self.inputs(z, u_t, features), reads], -1)
        return lstm_step(self.cell, inputs, h, c)

    def read(self, h: Tensor, weights: Tensor, rows: Tensor) -> Context:
        """The context of one step.

        Args:
            h: Output of the controller.
            weights: Of the read heads, `(*batch, heads, slots)`.
            rows: `(*batch, slots, word)`.
        """
        reads = (weights @ rows).flatten(-2)
        features = torch.cat([reads, h], -1) if self.context_includes_state else reads
        return Context(features, reads, weights)

    def remembered(self, z: Tensor) -> Tensor:
        """What the state keeps of z for the next step: all of it for pairs, else nothing."""
        return z if self.writer.previous else z[..., :0]
