r"""A hierarchy of latents, each of which moves by itself and is led by the one above.

.. math::
    p(x, z) = \prod_t p(x_t \mid z_t^1 [, x_{t-1}]) \prod_{l=1}^{L} N\big(z_t^l;
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
from pyro_seq.nn.arguments import check_choice
from pyro_seq.nn.heads import emission_head
from pyro_seq.nn.mlp import FlatFrames, mlp
from pyro_seq.nn.transitions import TRANSITIONS
from pyro_seq.plugins import register

__all__ = ["HierarchicalTemporalModel"]


@register("models", "hierarchical")
class HierarchicalTemporalModel(Presets, SplitStepModel):
    r"""Latents at several levels, the slow and general ones above, and frames below the lowest.

    At every step the site of the top level, ``zL``, is drawn first and ``z1`` last; the emission
    reads ``z1``. Nothing but the latents links one step to the next, so that a missing frame is
    integrated out exactly; with ``link`` the emission reads the frame before too, which where it
    is missing is the model's own prediction. With one level and gated transitions this is a deep
    Markov model, with linear ones and a linear emission a linear-Gaussian state space model.

    Args:
        frame: Size or shape of a frame.
        latents: Size of the latent of each level, the lowest first.
        transition: `"gated"`, with networks, or `"linear"`, with noise that does not depend on
            anything.
        hidden: Units of the hidden layer of gate and proposal.
        decoder: Units of each hidden layer of the emission; none when empty, so that a `"normal"`
            emission is linear in ``z1``.
        controls: Size of u, which the transition of every level reads, or 0.
        link: Units of each layer from the frame before, the first one of which is zeros, to what
            the emission reads beside ``z1``; the frame itself when empty; None for no such link.
        emission: `"bernoulli"`, `"normal"`, `"window"`, or a module from features to a
            distribution of the frame.
        emission_options: Keyword arguments of a named emission.

    Attributes:
        PRESETS: `"small"`, three levels for frames of some hundred values.

    Raises:
        TypeError: When sizes are no sequence.
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
        """The last latent of each level, the lowest first, and what is read of the last frame.

        Both `(*batch, size)`; None in place of the frame without a link to it.
        """

        z: tuple[Tensor, ...]
        frame: Tensor | None = None

    def __init__(
        self,
        frame: int | Sequence[int],
        *,
        latents: Sequence[int] = (16, 8),
        transition: str = "gated",
        hidden: int = 64,
        decoder: Sequence[int] = (64,),
        controls: int = 0,
        link: Sequence[int] | None = None,
        emission: str | nn.Module = "bernoulli",
        emission_options: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        for name, sizes in (("latents", latents), ("link", link)):
            if isinstance(sizes, int):
                raise TypeError(f"{name} must be a sequence of sizes; got {sizes}")
        if not latents or min(latents) < 1:
            raise ValueError(f"latents must be one positive size or more; got {tuple(latents)}")
        check_choice("transition", transition, TRANSITIONS)
        self.controls = controls
        above = [*latents[1:], 0]
        self.levels = nn.ModuleList(
            TRANSITIONS[transition](size, other + controls, hidden)
            for size, other in zip(latents, above, strict=True)
        )
        self.z_0 = nn.ParameterList(torch.zeros(size) for size in latents)
        self.reads_frames, self.memoryless = link is not None, link is None
        seen = 0
        if link is not None:
            self.values = Size((frame,) if isinstance(frame, int) else frame).numel()
            self.link = nn.Sequential(FlatFrames(), *mlp(self.values, link))
            seen = (self.values, *link)[-1]
        features = (latents[0] + seen, *decoder)[-1]
        if isinstance(emission, str):
            emission = emission_head(emission, features, frame, **(emission_options or {}))
        self.emit = nn.Sequential(*mlp(latents[0] + seen, decoder), emission)

    def begin(self, batch_shape: Size) -> State:
        """The learnt latents before the first step, and a frame of zeros."""
        seen = None
        if self.reads_frames:
            zeros = self.z_0[0].new_zeros(1, 1, self.values)
            seen = self.link(zeros).reshape(-1).expand(*batch_shape, -1)
        return self.State(tuple(z.expand(*batch_shape, -1) for z in self.z_0), seen)

    def embed(self, x: Tensor, memory: None) -> tuple[Tensor, None]:
        """What the emission of the next step reads of each frame, `(batch, time, features)`."""
        return self.link(x), memory

    def latents(self, state: State, u_t: Tensor | None) -> State:
        r"""Draws :math:`z_t^L` first and :math:`z_t^1` last."""
        above: list[Tensor] = []
        for number in range(len(state.z), 0, -1):
            others = above[:1] if u_t is None else [*above[:1], u_t]
            context = torch.cat(others, -1) if others else None
            loc, scale = self.levels[number - 1](state.z[number - 1], context)
            prior = dist.Normal(loc, scale, validate_args=False).to_event(1)
            above.insert(0, pyro.sample(f"z{number}", prior))
        return self.State(tuple(above), state.frame)

    def emission(self, latents: State) -> Any:  # noqa: ANN401
        r""":math:`p(x_t \mid z_t^1)`, or :math:`p(x_t \mid z_t^1, x_{t-1})`."""
        below = latents.z[0]
        return self.emit(below if latents.frame is None else torch.cat([below, latents.frame], -1))

    def transition(self, state: State, latents: State, embedding: Any, u_t: Any) -> State:  # noqa: ANN401
        """The latents are the state, and what is read of the frame where there is a link."""
        return self.State(latents.z, embedding)
