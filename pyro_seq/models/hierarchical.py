r"""A hierarchy of latents, each of which moves by itself and is led by the one above.

.. math::
    p(x, z) = \prod_t p(x_t \mid z_t^1) \prod_{l=1}^{L} N\big(z_t^l;
    \mu_l(z_{t-1}^l, z_t^{l+1}), \sigma_l^2(z_{t-1}^l, z_t^{l+1})\big)

References:
    Prémont-Schwarz, Ilin, Hao, Rasmus, Boney, Valpola (2017), Recurrent ladder networks,
    Figure 1c.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import pyro
import pyro.distributions as dist
import torch
from torch import Size, Tensor, nn

from pyro_seq.models.presets import Presets
from pyro_seq.models.step_model import SplitStepModel
from pyro_seq.nn.heads import emission_head
from pyro_seq.nn.mlp import mlp
from pyro_seq.nn.transitions import TRANSITIONS
from pyro_seq.plugins import register

__all__ = ["HierarchicalTemporalModel"]


@register("models", "hierarchical")
class HierarchicalTemporalModel(Presets, SplitStepModel):
    r"""Latents at several levels, the slow and general ones above, and frames below the lowest.

    At every step the site of the top level, ``zL``, is drawn first and ``z1`` last; the emission
    reads ``z1`` alone. Nothing but the latents links one step to the next, so that a missing frame
    is integrated out exactly. With one level and gated transitions this is a deep Markov model,
    with linear ones and a linear emission a linear-Gaussian state space model.

    Args:
        frame: Size or shape of a frame.
        latents: Size of the latent of each level, the lowest first.
        transition: `"gated"`, with networks, or `"linear"`, with noise that does not depend on
            anything.
        hidden: Units of the hidden layer of gate and proposal.
        decoder: Units of each hidden layer of the emission; none when empty, so that a `"normal"`
            emission is linear in ``z1``.
        controls: Size of u, which the transition of every level reads, or 0.
        emission: `"bernoulli"`, `"normal"`, `"window"`, or a module from features to a
            distribution of the frame.
        emission_options: Keyword arguments of a named emission.

    Attributes:
        PRESETS: `"small"`, three levels for frames of some hundred values.

    Raises:
        ValueError: When there is no level, or for an unknown transition or emission.

    Example:
        >>> model = HierarchicalTemporalModel(88, latents=[8, 4, 2])
        >>> model.generate(batch=2, time=5).shape
        torch.Size([2, 5, 88])
    """

    PRESETS = {"small": {"latents": (16, 8, 4), "hidden": 64, "decoder": (64,)}}
    reads_frames = False
    memoryless = True

    class State(NamedTuple):
        """The last latent of each level, the lowest first, `(*batch, latent)` each."""

        z: tuple[Tensor, ...]

    def __init__(
        self,
        frame: int | Sequence[int],
        *,
        latents: Sequence[int] = (16, 8),
        transition: str = "gated",
        hidden: int = 64,
        decoder: Sequence[int] = (64,),
        controls: int = 0,
        emission: str | nn.Module = "bernoulli",
        emission_options: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        if not latents or min(latents) < 1:
            raise ValueError(f"latents must be one positive size or more; got {tuple(latents)}")
        if transition not in TRANSITIONS:
            raise ValueError(
                f"transition must be one of {', '.join(TRANSITIONS)}; got {transition!r}"
            )
        self.controls = controls
        above = [*latents[1:], 0]
        self.levels = nn.ModuleList(
            TRANSITIONS[transition](size, other + controls, hidden)
            for size, other in zip(latents, above, strict=True)
        )
        self.z_0 = nn.ParameterList(torch.zeros(size) for size in latents)
        features = decoder[-1] if decoder else latents[0]
        if isinstance(emission, str):
            emission = emission_head(emission, features, frame, **(emission_options or {}))
        self.emit = nn.Sequential(*mlp(latents[0], decoder), emission)

    def begin(self, batch_shape: Size) -> State:
        """The learnt latents before the first step."""
        return self.State(tuple(z.expand(*batch_shape, -1) for z in self.z_0))

    def latents(self, state: State, u_t: Tensor | None) -> State:
        r"""Draws :math:`z_t^L` first and :math:`z_t^1` last."""
        above: list[Tensor] = []
        for number in range(len(state.z), 0, -1):
            others = above[:1] if u_t is None else [*above[:1], u_t]
            context = torch.cat(others, -1) if others else None
            loc, scale = self.levels[number - 1](state.z[number - 1], context)
            prior = dist.Normal(loc, scale, validate_args=False).to_event(1)
            above.insert(0, pyro.sample(f"z{number}", prior))
        return self.State(tuple(above))

    def emission(self, latents: State) -> Any:  # noqa: ANN401
        r""":math:`p(x_t \mid z_t^1)`."""
        return self.emit(latents.z[0])

    def transition(self, state: State, latents: State, embedding: Any, u_t: Any) -> State:  # noqa: ANN401
        """The latents are the state."""
        return latents
