r"""Introspective content memory: past latents, stored as they are, found by likeness or by time.

.. math::
    w = \pi_1 w_c + \pi_2 S w_c + \pi_3 S w_{t-1} + \pi_4 w_{t-1} + \pi_5 w_{pos}, \qquad
    \Psi = [\sigma(g) \circ w V,\, h_t,\, \max w_c]

where S moves weight from each row to the one written next. With controls, what is looked up is
also a place, to which the controls have led:

.. math::
    \varphi_t = \varphi_{t-1} + W u_t, \qquad
    w_c \propto \exp\Bigl(\beta\, q^\top k_n
    + \frac{\beta_\varphi}{P} \sum_p \cos(\varphi_{t,p} - \varphi_{n,p})\Bigr)

References:
    Gemici, Hung, Santoro, Wayne, Mohamed, Rezende, Amos, Lillicrap (2017), Generative temporal
    models with memory, whose introspection network this joins with look-up by content.
    Rae, Hunt, Danihelka et al. (2016), Scaling memory-augmented neural networks with sparse reads
    and writes.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Size, Tensor, nn

from pyro_seq.memory.base import Context, Memory
from pyro_seq.memory.interface import Interface, Start
from pyro_seq.nn.arguments import check_positive
from pyro_seq.nn.recurrent import RepeatedLSTMCell, lstm_step
from pyro_seq.nn.repeated import RepeatedLinear
from pyro_seq.ops import addressing
from pyro_seq.ops.addressing import Sparse
from pyro_seq.plugins import register

__all__ = ["ICM", "ICMState"]

_WAYS = ("content", "after content", "after the last", "the last", "position")
_START = (0.0, 1.0, 0.0, 0.0, 1.0)
_STRENGTH = 5.0  # alone a look-up must be sharp; beside a place it would drown it
_PHASES, _STRENGTH_BY_PLACE, _PHASE_STRENGTH, _TURN = 16, 2.0, 4.0, 0.5


class ICMState(NamedTuple):
    """What an introspective content memory remembers.

    Attributes:
        h: Output of the controller, `(*batch, hidden)`.
        c: Its cell, `(*batch, hidden)`.
        latents: V, `(*batch, slots, latent)`; zeros where none has been written.
        keys: Of unit length, and beside it cosines and sines of the place,
            `(*batch, slots, key + 2 phases)`.
        phase: Of the place, in radians, `(*batch, phases)`.
        steps: How many steps came before, int64 `(*batch,)`.
        weights: Of the read heads, `(*batch, heads, slots)`, or `(*batch, heads, top_k)`.
        chosen: The slots of these weights, int64 `(*batch, heads, top_k)`; of size 0 where all
            slots have weights.
    """

    h: Tensor
    c: Tensor
    latents: Tensor
    keys: Tensor
    phase: Tensor
    steps: Tensor
    weights: Tensor
    chosen: Tensor


class _Step(NamedTuple):
    """What a look-up needs of one step: queries times strengths, and which rows there are."""

    queries: Tensor
    null: Tensor
    keys: Tensor
    latents: Tensor
    slot: Tensor
    here: Tensor
    written: Tensor
    ways: Tensor
    positions: Tensor | None


@register("memories", "icm")
class ICM(Memory):
    r"""Introspective content memory.

    Each step writes :math:`z_{t-1}` with the key :math:`E z_{t-1} + B h_{t-1}` to the next row,
    the oldest where all are taken, and then looks up :math:`E z_{t-1} + Q^r h_t`: the two are
    tied, so that a latent finds what was like it before anything is learnt. The row just written
    is no candidate; a learnt null row, of value zero, always is. Rows are in the order of time,
    so that the row after one found takes no links. Nothing about writing is learnt but the keys,
    which to begin with are as unlike as the latents are (E is orthogonal).

    Where there are controls, phases that turn with them are a place, and rows are also found by
    the place at which they were written: by whichever way one came back, once the turns of
    opposite controls are opposite.

    Args:
        latent: Size of z.
        slots: Number of rows.
        heads: Number of read heads.
        hidden: Units of the controller.
        controls: Size of u, or 0.
        key: Size of a key; None for that of the latent.
        phases: How many tell a place, for a memory with controls, or 0; None for 16 if there are
            controls.
        top_k: Read that many rows alone; None for all. As many as slots means the same as all.
            The attribute may be changed between sequences: gradients are richer with many rows.
        positions: Whether heads can also read by position, with as many parameters as slots.
        position_hidden: Units of the hidden layer of the positions.
        ring: Whether there may be more steps than slots.
        context_includes_state: Whether the context has the controller's output.

    Raises:
        ValueError: When a size is not positive, top_k is more than the slots, or there are phases
            without controls.

    Example:
        >>> memory = ICM(latent=3, slots=6, heads=2, hidden=8)
        >>> context, state = memory(torch.randn(4, 6, 3))
        >>> context.features.shape, state.latents.shape
        (torch.Size([4, 6, 16]), torch.Size([4, 6, 3]))
    """

    def __init__(
        self,
        latent: int,
        slots: int,
        *,
        heads: int = 5,
        hidden: int = 200,
        controls: int = 0,
        key: int | None = None,
        phases: int | None = None,
        top_k: int | None = None,
        positions: bool = True,
        position_hidden: int = 128,
        ring: bool = True,
        context_includes_state: bool = True,
    ) -> None:
        key = latent if key is None else key
        phases = (_PHASES if controls else 0) if phases is None else phases
        check_positive(latent=latent, slots=slots, heads=heads, hidden=hidden)
        check_positive(key=key, position_hidden=position_hidden)
        check_positive(0, phases=phases)
        if phases and not controls:
            raise ValueError(f"phases must be 0 for a memory without controls; got {phases}")
        _check_top_k(top_k, slots)
        super().__init__(latent, slots=slots, heads=heads, controls=controls, wraps=ring)
        self.hidden, self.key, self.phases, self.top_k = hidden, key, phases, top_k
        self.context_includes_state = context_includes_state
        self.reads = heads * latent
        self.context = self.reads + hidden * context_includes_state + heads
        self.cell = RepeatedLSTMCell(latent + controls, hidden)
        self.content = RepeatedLinear(latent, key, bias=False)
        self.surroundings = RepeatedLinear(hidden, key, bias=False)
        self.null = nn.Parameter(torch.randn(key))
        ways = len(_WAYS) if positions else len(_WAYS) - 1
        parts: dict[str, tuple[int, ...]] = {
            "queries": (heads, key),
            "strengths": (heads,),
            "gates": (heads, latent),
            "ways": (heads, ways),
        }
        if positions:
            parts["positions"] = (position_hidden,)
            self.places = RepeatedLinear(position_hidden, heads * slots)
        strength = _STRENGTH_BY_PLACE if phases else _STRENGTH
        start: Start = {"queries": 0.0, "strengths": strength, "ways": torch.tensor(_START[:ways])}
        if phases:
            parts["phase_strengths"] = (heads,)
            start = {**start, "phase_strengths": _PHASE_STRENGTH}
            self.turn = RepeatedLinear(controls, phases, bias=False)
            self.null_phase = nn.Parameter(torch.full((1,), 0.5))
            nn.init.normal_(self.turn.weight, std=_TURN)
        self.interface = Interface(hidden, parts, start)
        nn.init.orthogonal_(self.content.weight)  # keys as unlike as the latents are
        with torch.no_grad():
            self.surroundings.weight.zero_()
            self.interface.rows_of("queries", self.interface.layer.weight).mul_(0.1)

    def initial_state(self, batch_shape: Size) -> ICMState:
        """Zeros."""
        _check_top_k(self.top_k, self.slots)  # which may have been changed
        zeros = self.cell.weight_hh.new_zeros(*batch_shape, self.hidden)
        latents = zeros.new_zeros(*batch_shape, self.slots, self.latent)
        keys = zeros.new_zeros(*batch_shape, self.slots, self.key + 2 * self.phases)
        phase = zeros.new_zeros(*batch_shape, self.phases)
        steps = torch.zeros(batch_shape, dtype=torch.int64, device=zeros.device)
        weights = zeros.new_zeros(*batch_shape, self.heads, self.top_k or self.slots)
        chosen = steps.new_zeros(*batch_shape, self.heads, self.top_k or 0)
        return ICMState(zeros, zeros, latents, keys, phase, steps, weights, chosen)

    def step(
        self,
        state: ICMState,
        z: Tensor,
        u_t: Tensor | None = None,
        features: Tensor | None = None,
    ) -> tuple[Context, ICMState]:
        """Controller, the latent stored, and rows found."""
        known = self.inputs(z, u_t, features)
        h, c = lstm_step(self.cell, torch.cat(known, -1), state.h, state.c)
        parts = self.interface(h)
        phase = state.phase + self.turn(known[-1].to(z)) if self.phases else state.phase
        step = self._prepare(state, z, parts, phase)
        if self.top_k is None:
            found, likeness = _dense(step, state)
            reads, weights, chosen = found @ step.latents, found, state.chosen
        else:
            sparse, likeness = _sparse(step, state, self.top_k)
            chosen, found = sparse
            values = addressing.gather_rows(step.latents, chosen)
            reads = (found.unsqueeze(-2) @ values).squeeze(-2)
            shape = (*found.shape[:-1], self.slots)
            weights = found.new_zeros(shape).scatter_add(-1, chosen, found)
        reads = (reads * parts["gates"].sigmoid()).flatten(-2)
        context = [reads, h, likeness] if self.context_includes_state else [reads, likeness]
        after = ICMState(h, c, step.latents, step.keys, phase, state.steps + 1, found, chosen)
        return Context(torch.cat(context, -1), reads, weights), after

    def _prepare(
        self, state: ICMState, z: Tensor, parts: dict[str, Tensor], phase: Tensor
    ) -> _Step:
        """The latent stored, and what is looked up."""
        content = self.content(z)
        key = addressing.unit(content + self.surroundings(state.h))
        strengths = addressing.oneplus(parts["strengths"])
        queries = addressing.unit(content.unsqueeze(-2) + parts["queries"], strengths)
        null = queries @ addressing.unit(self.null)
        if self.phases:
            strengths = addressing.oneplus(parts["phase_strengths"])
            here = strengths.unsqueeze(-1) * (_on_circle(phase) / self.phases).unsqueeze(-2)
            begun = state.steps.unsqueeze(-1) > 0  # the zeros before the first step are nowhere
            there = torch.where(begun, _on_circle(state.phase), 0)
            key = torch.cat([key, there], -1)
            queries = torch.cat([queries, here], -1)
            null = null + strengths * self.null_phase
        positions = None
        if "positions" in parts:
            scores = self.places(parts["positions"].tanh())
            positions = addressing.positive_weights(scores.unflatten(-1, (self.heads, self.slots)))
        slots = torch.arange(self.slots, device=z.device)
        slot = state.steps % self.slots
        return _Step(
            queries,
            null,
            addressing.write_row(state.keys, slot, key),
            addressing.write_row(state.latents, slot, z),
            slot[..., None, None],
            slots == slot.unsqueeze(-1),
            slots <= state.steps.unsqueeze(-1),
            parts["ways"].softmax(-1),
            positions,
        )


def _check_top_k(top_k: int | None, slots: int) -> None:
    """Raises an error unless so many rows can be read."""
    if top_k is not None:
        check_positive(top_k=top_k)
        if top_k > slots:
            raise ValueError(f"top_k must be at most slots={slots}, or None; got {top_k}")


def _on_circle(phase: Tensor) -> Tensor:
    """Cosines and sines, `(*batch, 2 phases)`; products of two are cosines of differences."""
    return torch.cat([phase.cos(), phase.sin()], -1)


def _dense(step: _Step, state: ICMState) -> tuple[Tensor, Tensor]:
    """Weights of all slots `(*batch, heads, slots)`, and the largest of those by content."""
    candidates = (step.written & ~step.here).unsqueeze(-2)
    content = addressing.candidate_weights(step.queries @ step.keys.mT, candidates, step.null)
    last = torch.where(step.here.unsqueeze(-2), 0, state.weights)
    ways = [content, content.roll(1, -1), state.weights.roll(1, -1), last]
    if step.positions is not None:
        ways.append(torch.where(step.written.unsqueeze(-2), step.positions, 0))
    weights = (step.ways.unsqueeze(-1) * torch.stack(ways, -2)).sum(-2)
    return weights, content.amax(-1)


def _sparse(step: _Step, state: ICMState, count: int) -> tuple[Sparse, Tensor]:
    """As :func:`_dense`, of the slots of largest weight alone."""
    slots = step.keys.shape[-2]
    candidates = step.written & ~step.here
    content = addressing.top_candidates(step.queries, step.keys, candidates, step.null, count)
    last = torch.where(state.chosen == step.slot, 0, state.weights)
    index = [content.slots, (content.slots + 1) % slots, (state.chosen + 1) % slots, state.chosen]
    weights = [content.weights, content.weights, state.weights, last]
    if step.positions is not None:
        placed = torch.where(step.written.unsqueeze(-2), step.positions, 0)
        placed, places = placed.topk(count, -1)
        index.append(places)
        weights.append(placed)
    weighed = (torch.stack(weights, -2) * step.ways.unsqueeze(-1)).flatten(-2)
    return addressing.largest(Sparse(torch.cat(index, -1), weighed), count), (
        content.weights.amax(-1)
    )
