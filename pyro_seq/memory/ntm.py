r"""The neural Turing machine: heads that find by content and move by place.

.. math::
    w_c = \mathrm{softmax}\, \beta \cos(k, M), \quad w_g = g\, w_c + (1 - g)\, w_{t-1}, \quad
    w = \mathrm{sharpen}_\gamma(w_g * s)

References:
    Graves, Wayne, Danihelka (2014), Neural Turing machines.
    Collier, Beel (2018), Implementing neural Turing machines.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Size, Tensor, nn
from torch.nn import functional

from pyro_seq.memory.base import Context
from pyro_seq.memory.controlled import ControlledMemory
from pyro_seq.memory.interface import Interface, RowWriter, Start
from pyro_seq.ops import addressing
from pyro_seq.plugins import register

__all__ = ["NTM", "NTMState"]

_EMPTY = 1e-6


class NTMState(NamedTuple):
    """What an NTM remembers.

    Attributes:
        h: Output of the controller, `(*batch, hidden)`.
        c: Its cell, `(*batch, hidden)`.
        rows: M, `(*batch, slots, word)`.
        weights: Of the read heads and, last, the write head, `(*batch, heads + 1, slots)`.
        reads: `(*batch, heads * word)`.
        previous: The latent taken in last, if pairs are written, else of size 0.
    """

    h: Tensor
    c: Tensor
    rows: Tensor
    weights: Tensor
    reads: Tensor
    previous: Tensor


@register("memories", "ntm")
class NTM(ControlledMemory):
    r"""Neural Turing machine, :math:`M_t = M_{t-1} \circ (1 - w e^\top) + w a^\top`.

    It may have fewer slots than there are steps: the write head goes round.

    By default it writes each latent as it is, to the slot after the one before; the controller
    learns a tag beside it, and can learn to write elsewhere. With ``write="tanh"`` it is that
    of the papers, and learns recall far more slowly.

    Args:
        latent: Size of z.
        slots: Number of rows.
        heads: Number of read heads; there is one write head.
        hidden: Units of the controller.
        controls: Size of u, or 0.
        write: `"latent_tag"`, `"latent_add"`, `"linear"` or `"tanh"`, see
            :class:`~pyro_seq.memory.RowWriter`.
        word: Size of a row, or None.
        write_previous: Whether a row also says what latent came before.
        tied_query: Whether the latent, or what pairs say of it, is added to the queries: recall
            by likeness then works before it is learnt.
        read_before_write: Whether a step reads first and writes then, as Gemici et al., eq. 16,
            or writes first.
        context_includes_state: Whether the context has the controller's output.

    Example:
        >>> memory = NTM(latent=3, slots=6, heads=2, hidden=8)
        >>> state = memory.initial_state(torch.Size([4]))
        >>> context, state = memory.step(state, torch.zeros(4, 3))
        >>> context.features.shape
        torch.Size([4, 22])
    """

    def __init__(
        self,
        latent: int,
        slots: int,
        *,
        heads: int = 5,
        hidden: int = 200,
        controls: int = 0,
        write: str = "latent_tag",
        word: int | None = None,
        write_previous: bool = False,
        tied_query: bool = False,
        read_before_write: bool = True,
        context_includes_state: bool = True,
    ) -> None:
        super().__init__(
            latent,
            slots=slots,
            heads=heads,
            hidden=hidden,
            controls=controls,
            writer=RowWriter(latent, write, word, previous=write_previous, tied=tied_query),
            context_includes_state=context_includes_state,
        )
        self.read_before_write = read_before_write
        both = heads + 1
        parts = {
            "queries": (heads, self.word),
            "write_query": (1, self.word),
            "strengths": (both,),
            "gates": (both,),
            "shifts": (both, 3),
            "powers": (both,),
            "erase": (self.word,),
            "row": (1, self.writer.parameters_size),
        }
        start: Start = {
            "strengths": 2.0,
            "gates": torch.tensor([0.0] * heads + [-3.0]),
            "shifts": torch.tensor([[-1.0, 1.0, 1.0]] * heads + [[-2.0, -2.0, 4.0]]),
            "powers": 1.0,
        }
        self.interface = Interface(hidden, parts, start)
        self.first_reads = nn.Parameter(torch.zeros(self.reads))
        self.first_weights = nn.Parameter(0.1 * torch.randn(both, slots))
        with torch.no_grad():  # the first step forward is to slot 0
            self.first_weights[-1] = 8.0 * torch.eye(slots)[-1]

    def initial_state(self, batch_shape: Size) -> NTMState:
        """Nearly empty rows; learnt weights and reads."""
        zeros = self.first_reads.new_zeros(*batch_shape, self.hidden)
        rows = zeros.new_full((*batch_shape, self.slots, self.word), _EMPTY)
        weights = self.first_weights.softmax(-1).expand(*batch_shape, -1, -1)
        reads = self.first_reads.tanh().expand(*batch_shape, -1)
        previous = self.remembered(zeros.new_zeros(*batch_shape, self.latent))
        return NTMState(zeros, zeros, rows, weights, reads, previous)

    def step(
        self,
        state: NTMState,
        z: Tensor,
        u_t: Tensor | None = None,
        features: Tensor | None = None,
    ) -> tuple[Context, NTMState]:
        """Controller, heads, and one row written."""
        h, c = self.control(state.h, state.c, state.reads, z, u_t, features)
        parts = self.interface(h)
        parts["queries"] = torch.cat(
            [self.writer.cue(parts["queries"], z), parts.pop("write_query")], -2
        )
        row = self.writer(z, parts.pop("row"), state.previous).squeeze(-2)
        erase = parts.pop("erase").sigmoid()
        if self.read_before_write:
            weights = _address(parts, state.weights, state.rows)
            context = self.read(h, weights[..., :-1, :], state.rows)
            rows = addressing.erase_and_add(state.rows, weights[..., -1, :], erase, row)
        else:
            reading, writing = state.weights.split([self.heads, 1], -2)
            writing = _address(self._some(parts, self.heads, 1), writing, state.rows)
            rows = addressing.erase_and_add(state.rows, writing.squeeze(-2), erase, row)
            reading = _address(self._some(parts, 0, self.heads), reading, rows)
            context, weights = self.read(h, reading, rows), torch.cat([reading, writing], -2)
        return context, NTMState(h, c, rows, weights, context.reads, self.remembered(z))

    def _some(self, parts: dict[str, Tensor], first: int, count: int) -> dict[str, Tensor]:
        """The parameters of some heads alone."""
        batch = parts["strengths"].dim() - 1
        return {name: part.narrow(batch, first, count) for name, part in parts.items()}


def _address(parts: dict[str, Tensor], before: Tensor, rows: Tensor) -> Tensor:
    """Weights of heads `(*batch, heads, slots)` from their parameters and those before."""
    strengths = functional.softplus(parts["strengths"])
    content = addressing.content_weights(parts["queries"], rows, strengths)
    gated = torch.lerp(before, content, parts["gates"].sigmoid().unsqueeze(-1))
    moved = addressing.circular_shift(gated, parts["shifts"].softmax(-1))
    return addressing.sharpen(moved, addressing.oneplus(parts["powers"]))
