r"""A frame made by groups, each with a latent of its own, that share its pixels among them.

.. math::
    h_{k,t} \sim N(F h_{k,t-1}, \Sigma), \quad h_{k,1} \sim N(0, I), \qquad
    \ell_k, z_k = \mathrm{dec}(h_{k,t}), \quad m = \mathrm{softmax}_k\, \ell_k

    p(x_t \mid h_t) = \prod_i \sum_k m_{ik}\, p(x_{i,t} \mid z_{ik})

This is eq. 4 of the paper made a density. There the factor of group k,
:math:`p(z_k, \mu_k \mid h_k)`, says by itself which pixels are its own, and a product of such
factors need not add up to 1 over the assignments of pixels to groups; here the softmax over groups
makes it so, and the assignments are summed out.

References:
    Prémont-Schwarz, Ilin, Hao, Rasmus, Boney, Valpola (2017), Recurrent ladder networks, eq. 4.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import pyro
import pyro.distributions as dist
import torch
from torch import Size, Tensor, nn

from pyro_seq.distributions import GroupMixture
from pyro_seq.models.step_model import SplitStepModel
from pyro_seq.nn.arguments import check_choice, check_mean, check_positive
from pyro_seq.nn.repeated import RepeatedLinear
from pyro_seq.nn.transitions import TRANSITIONS
from pyro_seq.plugins import register

__all__ = ["GroupMixtureModel"]

PIXELS = ("bernoulli", "gaussian")


@register("models", "group_mixture")
class GroupMixtureModel(SplitStepModel):
    r"""Groups that share the pixels of each frame, and move by themselves.

    The latent of a step is the site ``h``, `(groups, latent)`. All groups have one decoder and one
    transition, so that the density does not change when groups change places. A still picture is a
    sequence of one frame. Nothing but the latents links one step to the next.

    Args:
        frame: Shape of a frame, `(channels, *space)`.
        groups: K.
        latent: Size of each :math:`h_k`.
        decoder: Units of each hidden layer from h to means and shares, with layer normalisation.
        pixels: `"bernoulli"`, or `"gaussian"` with one standard deviation for all pixels.
        mean: Of the data; what the means of groups begin around.
        transition: `"linear"` or `"gated"`, with a network.
        hidden: Units of the hidden layer of a gated transition.

    Raises:
        ValueError: For a size or a name out of range.

    Example:
        >>> model = GroupMixtureModel((1, 6, 6), groups=3, latent=4, decoder=[8])
        >>> model.generate(batch=2).shape
        torch.Size([2, 1, 1, 6, 6])
        >>> model.emission(torch.randn(2, 3, 4)).m.shape
        torch.Size([2, 3, 1, 6, 6])
    """

    reads_frames = False

    class State(NamedTuple):
        """Mean and standard deviation of the next latents, `(*batch, groups, latent)` each."""

        loc: Tensor
        scale: Tensor

    def __init__(
        self,
        frame: Sequence[int],
        *,
        groups: int = 3,
        latent: int = 16,
        decoder: Sequence[int] = (100, 200),
        pixels: str = "bernoulli",
        mean: float = 0.5,
        transition: str = "linear",
        hidden: int = 64,
    ) -> None:
        super().__init__()
        check_choice("pixels", pixels, PIXELS)
        check_choice("transition", transition, TRANSITIONS)
        if isinstance(frame, int) or len(frame) < 2 or min(frame) < 1:
            raise ValueError(f"frame must be (channels, *space), all positive; got {frame}")
        check_positive(groups=groups, latent=latent)
        mean = check_mean(mean, pixels)
        self.frame_shape, self.groups, self.latent = Size(frame), groups, latent
        self.pixels, self.mean = pixels, mean
        self.move = TRANSITIONS[transition](latent, 0, hidden)
        self.decoder = nn.Sequential()
        for inputs, width in pairwise([latent, *decoder]):
            self.decoder.extend([RepeatedLinear(inputs, width), nn.LayerNorm(width), nn.ReLU()])
        self.shares = (1, *self.frame_shape[1:])
        values = self.frame_shape.numel() + math.prod(self.shares)
        self.read = RepeatedLinear([latent, *decoder][-1], values)
        with torch.no_grad():
            self.read.bias.zero_()
            start = math.log(mean / (1 - mean)) if pixels == "bernoulli" else mean
            self.read.bias[: self.frame_shape.numel()] = start
        self.log_scale = nn.Parameter(torch.zeros(1)) if pixels == "gaussian" else None

    @property
    def frame_bounds(self) -> tuple[float, float] | None:
        """Between which values frames must lie."""
        return (0.0, 1.0) if self.pixels == "bernoulli" else None

    def begin(self, batch_shape: Size) -> State:
        """Standard normal latents."""
        zeros = self.read.bias.new_zeros(*batch_shape, self.groups, self.latent)
        return self.State(zeros, torch.ones_like(zeros))

    def latents(self, state: State, u_t: Tensor | None) -> Tensor:
        """Draws the latents of all groups."""
        prior = dist.Normal(state.loc, state.scale, validate_args=False).to_event(2)
        return pyro.sample("h", prior)

    def emission(self, latents: Tensor) -> GroupMixture:
        """The mixture over groups of each pixel, given h `(*batch, groups, latent)`."""
        said = self.read(self.decoder(latents))
        raw, logits = said.split([self.frame_shape.numel(), math.prod(self.shares)], -1)
        raw = raw.reshape(*raw.shape[:-1], *self.frame_shape)
        logits = logits.reshape(*logits.shape[:-1], *self.shares)
        values: Any
        if self.log_scale is None:
            values = dist.Bernoulli(logits=raw, validate_args=False)
        else:
            values = dist.Normal(raw, self.log_scale.exp(), validate_args=False)
        dims = len(self.frame_shape)
        return GroupMixture(logits.log_softmax(-1 - dims), values, dims, validate_args=False)

    def transition(self, state: State, latents: Tensor, embedding: Any, u_t: Any) -> State:  # noqa: ANN401
        """What the latents of the next step will be drawn from."""
        return self.State(*self.move(latents, None))
