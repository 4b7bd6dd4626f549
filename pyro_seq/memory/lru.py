r"""Least recently used access: what is new replaces what was used least.

.. math::
    w^w = \sigma(\alpha)\, w^r_{t-1} + (1 - \sigma(\alpha))\, w^{lu}, \qquad
    w^r_t = \mathrm{softmax}\, \beta \cos(k, M_t)

References:
    Santoro, Bartunov, Botvinick, Wierstra, Lillicrap (2016), One-shot learning with
    memory-augmented neural networks.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Size, Tensor

from pyro_seq.memory.base import Context
from pyro_seq.memory.controlled import ControlledMemory
from pyro_seq.memory.interface import WRITES, Interface, RowWriter
from pyro_seq.nn.arguments import check_choice, check_positive
from pyro_seq.ops import addressing
from pyro_seq.plugins import register

__all__ = ["LRU", "LRUState"]


class LRUState(NamedTuple):
    """What an LRU memory remembers.

    Attributes:
        h: Output of the controller, `(*batch, hidden)`.
        c: Its cell, `(*batch, hidden)`.
        rows: M, `(*batch, slots, word)`.
        weights: Of the read heads, `(*batch, heads, slots)`.
        usage: How recently each slot was used, `(*batch, slots)`; a statistic without gradient.
        reads: `(*batch, heads * word)`.
        previous: The latent taken in last, if pairs are written, else of size 0.
    """

    h: Tensor
    c: Tensor
    rows: Tensor
    weights: Tensor
    usage: Tensor
    reads: Tensor
    previous: Tensor


@register("memories", "lru")
class LRU(ControlledMemory):
    r"""Memory with least recently used access; it writes first and then reads.

    .. math:: u_t = 0.95\, u_{t-1} + \sum_r w^r_t + \sum_r w^w_t

    Each write head has a slot of its own among those used least, which is emptied before; ties
    go to the slot of lower number. It may have fewer slots than there are steps.

    Args:
        latent: Size of z.
        slots: Number of rows. What is read counts as used, if only a little of it is: to keep
            all of a sequence takes more slots than steps; Gemici et al. have five times as many.
        heads: Number of read heads.
        hidden: Units of the controller.
        controls: Size of u, or 0.
        write: As in :class:`~pyro_seq.memory.RowWriter`, or `"key"`: the head's query is also
            what it writes, as in Santoro et al.
        word: Size of a row, or None.
        write_heads: How many of the heads write; Santoro et al. have as many as read heads, each
            of which writes a copy.
        write_previous: Whether a row also says what latent came before.
        tied_query: Whether the latent, or what pairs say of it, is added to the queries.
        key_strength: Whether heads have a strength :math:`\beta`. Without one, as in Santoro et
            al., no read can be sharp: of 25 slots a weight is .24 at most.
        context_includes_state: Whether the context has the controller's output.

    Example:
        >>> memory = LRU(latent=3, slots=6, heads=2, hidden=8)
        >>> context, state = memory(torch.randn(4, 6, 3))
        >>> context.reads.shape
        torch.Size([4, 6, 14])
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
        write_heads: int = 1,
        write_previous: bool = False,
        tied_query: bool = False,
        key_strength: bool = True,
        context_includes_state: bool = True,
    ) -> None:
        check_choice("write", write, (*WRITES, "key"))
        check_positive(slots=slots, heads=heads, write_heads=write_heads)
        if write_heads > min(heads, slots):
            raise ValueError(
                f"write_heads must be at most heads={heads} and slots={slots}; got {write_heads}"
            )
        self.writes_key = write == "key"
        if self.writes_key and (write_previous or tied_query):
            raise ValueError(
                "write_previous and tied_query need rows that hold the latent; got write='key'"
            )
        write = "linear" if self.writes_key else write
        super().__init__(
            latent,
            slots=slots,
            heads=heads,
            hidden=hidden,
            controls=controls,
            writer=RowWriter(latent, write, word, previous=write_previous, tied=tied_query),
            context_includes_state=context_includes_state,
        )
        self.write_heads = write_heads
        parts: dict[str, tuple[int, ...]] = {
            "queries": (heads, self.word),
            "gates": (write_heads, 1),
        }
        start = {"gates": -3.0}
        if not self.writes_key:
            parts["row"] = (write_heads, self.writer.parameters_size)
        if key_strength:
            parts["strengths"] = (heads,)
            start["strengths"] = 2.0
        self.interface = Interface(hidden, parts, start)

    def initial_state(self, batch_shape: Size) -> LRUState:
        """Zeros."""
        zeros = self.cell.weight_hh.new_zeros(*batch_shape, self.hidden)
        rows = zeros.new_zeros(*batch_shape, self.slots, self.word)
        weights = zeros.new_zeros(*batch_shape, self.heads, self.slots)
        reads = zeros.new_zeros(*batch_shape, self.reads)
        previous = self.remembered(zeros.new_zeros(*batch_shape, self.latent))
        return LRUState(zeros, zeros, rows, weights, weights[..., 0, :], reads, previous)

    def step(
        self,
        state: LRUState,
        z: Tensor,
        u_t: Tensor | None = None,
        features: Tensor | None = None,
    ) -> tuple[Context, LRUState]:
        """Controller, rows written over those used least, and rows read."""
        h, c = self.control(state.h, state.c, state.reads, z, u_t, features)
        parts = self.interface(h)
        queries = self.writer.cue(parts["queries"], z)
        row = parts["row"] if "row" in parts else queries[..., : self.write_heads, :]
        row = self.writer(z, row, state.previous)
        unused = addressing.least_used(state.usage, self.write_heads)
        tied = state.weights[..., : self.write_heads, :]
        writes = torch.lerp(unused, tied, parts["gates"].sigmoid())
        kept = state.rows.masked_fill(unused.any(-2).unsqueeze(-1), 0)
        rows = kept + writes.mT @ row
        strengths = addressing.oneplus(parts["strengths"]) if "strengths" in parts else None
        weights = addressing.content_weights(queries, rows, strengths)
        usage = addressing.recent_usage(state.usage, weights.detach(), writes.detach())
        context = self.read(h, weights, rows)
        return context, LRUState(h, c, rows, weights, usage, context.reads, self.remembered(z))
