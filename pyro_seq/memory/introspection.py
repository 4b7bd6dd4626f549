r"""The introspection network: past latents, stored as they are, found by when they came.

.. math::
    w^r = \frac{\mathrm{softplus}\, k^r(h_t)}{\sum_n \mathrm{softplus}\, k^r(h_t)_n}, \qquad
    \Psi^r = \sigma(g^r(h_t)) \circ \sum_n w^r_n\, M_n

References:
    Gemici, Hung, Santoro, Wayne, Mohamed, Rezende, Amos, Lillicrap (2017), Generative temporal
    models with memory, section 3.1.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Size, Tensor, nn

from pyro_seq.memory.base import Context, Memory
from pyro_seq.memory.interface import Interface
from pyro_seq.nn.arguments import check_choice, check_positive
from pyro_seq.nn.recurrent import RepeatedLSTMCell, lstm_step
from pyro_seq.nn.repeated import RepeatedLinear
from pyro_seq.ops import addressing
from pyro_seq.plugins import register

__all__ = ["Introspection", "IntrospectionState"]


class IntrospectionState(NamedTuple):
    """What an introspection network remembers.

    Attributes:
        h: Output of the controller, `(*batch, hidden)`.
        c: Its cell, `(*batch, hidden)`.
        rows: Latents, `(*batch, slots, latent)`; zeros where none has been written.
        steps: How many steps came before, int64 `(*batch,)`.
    """

    h: Tensor
    c: Tensor
    rows: Tensor
    steps: Tensor


@register("memories", "introspection")
class Introspection(Memory):
    r"""Attention over the times at which latents came; nothing about writing is learnt.

    Each step writes :math:`z_{t-1}` and then reads, so that row t holds :math:`z_t`, row 0 the
    zeros that stand before the first. The attention knows nothing of the rows' content: what a
    step needs must be known from the controller.

    Args:
        latent: Size of z.
        slots: Number of rows; the paper has as many as steps.
        heads: Number of read heads.
        hidden: Units of the controller.
        controls: Size of u, or 0.
        order: `"append"`: a row keeps its place, and a weight means a time from the start; with
            more steps than slots, the oldest row is replaced. `"shift"`: the newest is row 0, and
            a weight means a time before now; with more steps than slots, the oldest falls out.
        attention: `"softplus"`, or `"softmax"`, which the paper found slower.
        attention_hidden: Units of the hidden layer of k.
        learnt_gates: Whether the gates g are free parameters, the same at all steps, and not a
            function of h.
        ring: Whether there may be more steps than slots.
        context_includes_state: Whether the context has the controller's output beside the reads.

    Example:
        >>> memory = Introspection(latent=3, slots=6, heads=2, hidden=8)
        >>> context, state = memory(torch.randn(4, 6, 3))
        >>> context.features.shape, state.rows.shape
        (torch.Size([4, 6, 6]), torch.Size([4, 6, 3]))
    """

    def __init__(
        self,
        latent: int,
        slots: int,
        *,
        heads: int = 5,
        hidden: int = 200,
        controls: int = 0,
        order: str = "append",
        attention: str = "softplus",
        attention_hidden: int = 128,
        learnt_gates: bool = False,
        ring: bool = True,
        context_includes_state: bool = False,
    ) -> None:
        check_positive(slots=slots, heads=heads, hidden=hidden, attention_hidden=attention_hidden)
        check_choice("order", order, ("append", "shift"))
        check_choice("attention", attention, ("softplus", "softmax"))
        super().__init__(latent, slots=slots, heads=heads, controls=controls, wraps=ring)
        self.hidden, self.order, self.attention = hidden, order, attention
        self.reads = heads * latent
        self.context_includes_state = context_includes_state
        self.context = self.reads + hidden * context_includes_state
        self.cell = RepeatedLSTMCell(latent + controls, hidden)
        parts: dict[str, tuple[int, ...]] = {"attention": (attention_hidden,)}
        self.gates = None
        if learnt_gates:
            self.gates = nn.Parameter(torch.zeros(heads, latent))
        else:
            parts["gates"] = (heads, latent)
        self.interface = Interface(hidden, parts)
        self.places = RepeatedLinear(attention_hidden, heads * slots)

    def initial_state(self, batch_shape: Size) -> IntrospectionState:
        """Zeros."""
        zeros = self.cell.weight_hh.new_zeros(*batch_shape, self.hidden)
        rows = zeros.new_zeros(*batch_shape, self.slots, self.latent)
        steps = torch.zeros(batch_shape, dtype=torch.int64, device=zeros.device)
        return IntrospectionState(zeros, zeros, rows, steps)

    def step(
        self,
        state: IntrospectionState,
        z: Tensor,
        u_t: Tensor | None = None,
        features: Tensor | None = None,
    ) -> tuple[Context, IntrospectionState]:
        """Controller, the latent stored, and rows read."""
        inputs = torch.cat(self.inputs(z, u_t, features), -1)
        h, c = lstm_step(self.cell, inputs, state.h, state.c)
        rows = self._write(state, z)
        parts = self.interface(h)
        scores = self.places(parts["attention"].tanh()).unflatten(-1, (self.heads, self.slots))
        softplus = self.attention == "softplus"
        weights = addressing.positive_weights(scores) if softplus else scores.softmax(-1)
        gates = parts["gates"] if self.gates is None else self.gates
        reads = ((weights @ rows) * gates.sigmoid()).flatten(-2)
        context = torch.cat([reads, h], -1) if self.context_includes_state else reads
        after = IntrospectionState(h, c, rows, state.steps + 1)
        return Context(context, reads, weights), after

    def _write(self, state: IntrospectionState, z: Tensor) -> Tensor:
        """The rows with z among them."""
        if self.order == "shift":
            return torch.cat([z.unsqueeze(-2), state.rows[..., :-1, :]], -2)
        return addressing.write_row(state.rows, state.steps % self.slots, z)
