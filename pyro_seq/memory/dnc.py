r"""The differentiable neural computer: content, allocation of free slots, and links in time.

.. math::
    w^w = g_w\, (g_a\, a + (1 - g_a)\, c_w), \qquad
    w^r = \pi_1\, L_t^\top w^r_{t-1} + \pi_2\, c_r + \pi_3\, L_t w^r_{t-1}

References:
    Graves, Wayne, Reynolds et al. (2016), Hybrid computing using a neural network with dynamic
    external memory.
    Csordas, Schmidhuber (2019), Improving differentiable neural computers through memory
    masking, de-allocation, and link distribution sharpness control.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Size, Tensor

from pyro_seq.memory.base import Context
from pyro_seq.memory.controlled import ControlledMemory
from pyro_seq.memory.interface import Interface, RowWriter, Start
from pyro_seq.ops import addressing
from pyro_seq.plugins import register

__all__ = ["DNC", "DNCState"]


class DNCState(NamedTuple):
    """What a DNC remembers.

    Attributes:
        h: Output of the controller, `(*batch, hidden)`.
        c: Its cell, `(*batch, hidden)`.
        rows: M, `(*batch, slots, word)`.
        usage: u, `(*batch, slots)`.
        links: L, `(*batch, slots, slots)`.
        precedence: p, `(*batch, slots)`.
        write: Weights of the write head, `(*batch, slots)`.
        weights: Of the read heads, `(*batch, heads, slots)`.
        reads: `(*batch, heads * word)`.
        previous: The latent taken in last, if pairs are written, else of size 0.
    """

    h: Tensor
    c: Tensor
    rows: Tensor
    usage: Tensor
    links: Tensor
    precedence: Tensor
    write: Tensor
    weights: Tensor
    reads: Tensor
    previous: Tensor


@register("memories", "dnc")
class DNC(ControlledMemory):
    r"""Differentiable neural computer; it writes first and then reads.

    It may have fewer slots than there are steps, as long as its heads free what they have read.
    Its links take memory in proportion to the square of the slots.

    Args:
        latent: Size of z.
        slots: Number of rows.
        heads: Number of read heads; there is one write head.
        hidden: Units of the controller.
        controls: Size of u, or 0.
        write: As in :class:`~pyro_seq.memory.RowWriter`; `"linear"` is the paper's.
        word: Size of a row, or None.
        write_previous: Whether a row also says what latent came before. Links lead on from what
            was read a step ago: to find by likeness and go on to the next within one step, a row
            must itself say what came before.
        tied_query: Whether the latent, or what pairs say of it, is added to the queries.
        detach_usage: Whether usage is a constant for the gradient with respect to the write
            weights, as in the authors' code.
        erase_freed: Whether a row that is freed is also emptied (Csordas and Schmidhuber).
        context_includes_state: Whether the context has the controller's output.

    Example:
        >>> memory = DNC(latent=3, slots=6, heads=2, hidden=8)
        >>> context, state = memory(torch.randn(4, 6, 3))
        >>> state.links.shape
        torch.Size([4, 6, 6])
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
        detach_usage: bool = True,
        erase_freed: bool = False,
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
        self.detach_usage, self.erase_freed = detach_usage, erase_freed
        parts = {
            "queries": (heads, self.word),
            "write_query": (1, self.word),
            "strengths": (heads + 1,),
            "row": (1, self.writer.parameters_size),
            "modes": (heads, 3),
            "free": (heads,),
            "gates": (2,),
            "erase": (self.word,),
        }
        start: Start = {
            "strengths": 2.0,
            "modes": torch.tensor([-1.0, 1.0, 1.0]),
            "free": -3.0,
            "gates": 2.0,
        }
        self.interface = Interface(hidden, parts, start)

    def initial_state(self, batch_shape: Size) -> DNCState:
        """Zeros."""
        zeros = self.cell.weight_hh.new_zeros(*batch_shape, self.hidden)
        rows = zeros.new_zeros(*batch_shape, self.slots, self.word)
        usage = zeros.new_zeros(*batch_shape, self.slots)
        links = zeros.new_zeros(*batch_shape, self.slots, self.slots)
        weights = zeros.new_zeros(*batch_shape, self.heads, self.slots)
        reads = zeros.new_zeros(*batch_shape, self.reads)
        previous = self.remembered(zeros.new_zeros(*batch_shape, self.latent))
        slots = usage, links, usage, usage
        return DNCState(zeros, zeros, rows, *slots, weights, reads, previous)

    def step(
        self,
        state: DNCState,
        z: Tensor,
        u_t: Tensor | None = None,
        features: Tensor | None = None,
    ) -> tuple[Context, DNCState]:
        """Controller, one row written, links, and rows read."""
        h, c = self.control(state.h, state.c, state.reads, z, u_t, features)
        parts = self.interface(h)
        queries = torch.cat([self.writer.cue(parts["queries"], z), parts["write_query"]], -2)
        queries = addressing.unit(queries, addressing.oneplus(parts["strengths"]))
        queries, query = queries.split([self.heads, 1], -2)
        gates = torch.cat([parts["free"], parts["gates"], parts["erase"]], -1).sigmoid()
        free, gates, erase = gates.split([self.heads, 2, self.word], -1)
        before = state.write.detach() if self.detach_usage else state.write
        used = addressing.retained_usage(state.usage, before, state.weights, free)
        likeness = addressing.likeness(query, state.rows)
        write = gates[..., 1:] * torch.lerp(
            likeness.squeeze(-2), addressing.allocation(used.usage), gates[..., :1]
        )
        row = self.writer(z, parts["row"], state.previous).squeeze(-2)
        kept = state.rows * used.retention.unsqueeze(-1) if self.erase_freed else state.rows
        rows = addressing.erase_and_add(kept, write, erase, row)
        links = addressing.temporal_links(state.links, state.precedence, write)
        likeness = addressing.likeness(queries, rows)
        weights = _mix(parts["modes"], links.links, state.weights, likeness)
        context = self.read(h, weights, rows)
        return context, DNCState(
            h, c, rows, used.usage, *links, write, weights, context.reads, self.remembered(z)
        )


def _mix(modes: Tensor, links: Tensor, before: Tensor, likeness: Tensor) -> Tensor:
    """Read weights: backward, by content and forward, in the proportion of the modes."""
    backward, forward = addressing.follow_links(links, before)
    ways = torch.stack([backward, likeness, forward], -2)
    return (modes.softmax(-1).unsqueeze(-1) * ways).sum(-2)
