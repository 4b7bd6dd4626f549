r"""The deep Markov model.

.. math:: p(x, z) = \prod_t N(z_t; \mu(z_{t-1}), \sigma^2(z_{t-1}))\, p(x_t \mid z_t)

References:
    Krishnan, Shalit, Sontag (2017), Structured inference networks for nonlinear state space
    models.
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
from pyro_seq.nn.transitions import GatedTransition
from pyro_seq.plugins import register

__all__ = ["DMM"]


@register("models", "dmm")
class DMM(Presets, SplitStepModel):
    r"""Deep Markov model with the gated transition of its paper.

    .. math::
        g = \mathrm{sigm}(G(z_{t-1})), \quad h = H(z_{t-1}), \quad
        \mu = (1 - g) \odot W z_{t-1} + g \odot h, \quad
        \sigma = \mathrm{softplus}(W_\sigma\, \mathrm{relu}(h))

    with W the identity to begin with. Nothing but the latent links one step to the next, so that a
    missing frame is integrated out exactly: its likelihood drops out.

    Args:
        frame: Size or shape of a frame.
        latent: Size of z.
        hidden: Units of the hidden layer of gate and proposal.
        width: Units of the two hidden layers of the emission.
        controls: Size of u, which the transition reads beside z, or 0.
        emission: `"bernoulli"`, `"normal"`, `"window"`, or a module from z to a distribution of
            the frame.
        emission_options: Keyword arguments of a named emission.

    Attributes:
        PRESETS: `"midi"`, the sizes of Krishnan et al. for notes of the piano.

    Raises:
        ValueError: For an unknown emission.

    Example:
        >>> DMM(frame=88, latent=10).generate(batch=2, time=5).shape
        torch.Size([2, 5, 88])
    """

    PRESETS = {
        "midi": {"frame": 88, "latent": 100, "hidden": 200, "width": 100, "emission": "bernoulli"}
    }
    reads_frames = False
    memoryless = True

    class State(NamedTuple):
        """The last latent, `(*batch, latent)`."""

        z: Tensor

    def __init__(
        self,
        frame: int | Sequence[int],
        *,
        latent: int = 100,
        hidden: int = 200,
        width: int = 100,
        controls: int = 0,
        emission: str | nn.Module = "bernoulli",
        emission_options: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.controls = controls
        self.dynamics = GatedTransition(latent, controls, hidden)
        self.z_0 = nn.Parameter(torch.zeros(latent))
        if isinstance(emission, str):
            head = emission_head(emission, width, frame, **(emission_options or {}))
            emission = nn.Sequential(*mlp(latent, [width, width], nn.ReLU), head)
        self.emit = emission

    def begin(self, batch_shape: Size) -> State:
        """The learnt latent before the first."""
        return self.State(self.z_0.expand(*batch_shape, -1))

    def latents(self, state: State, u_t: Tensor | None) -> Tensor:
        r"""Draws :math:`z_t`, `(*batch, latent)`."""
        loc, scale = self.dynamics(state.z, u_t)
        return pyro.sample("z", dist.Normal(loc, scale, validate_args=False).to_event(1))

    def emission(self, latents: Tensor) -> Any:  # noqa: ANN401
        r""":math:`p(x_t \mid z_t)`."""
        return self.emit(latents)

    def transition(self, state: State, latents: Tensor, embedding: Any, u_t: Any) -> State:  # noqa: ANN401
        """The latent is the state."""
        return self.State(latents)
