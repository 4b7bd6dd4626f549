r"""What an online filter asks of a guide, and how a filtering guide answers."""

from __future__ import annotations

import math
from typing import Any, NamedTuple, Protocol, runtime_checkable

import pyro.distributions as dist
import torch
from torch import Size, Tensor

from pyro_seq.guides.filtering import FilteringGuide, FilterState
from pyro_seq.guides.sites import InferSites, LatentSite, check_names
from pyro_seq.models.step_handlers import FRAME, predicted
from pyro_seq.ops.resampling import resampled

__all__ = ["FilterUpdate", "OnlineGuide", "OnlineState", "Streams", "check_streams"]


@runtime_checkable
class OnlineGuide(Protocol):
    """What :class:`OnlineFilter` asks of a guide that is no :class:`FilteringGuide`.

    It is asked in evaluation mode and without gradients. Its states are trees of tensors and
    numbers; what they hold is all that is remembered.
    """

    def start_online(self, batch: int) -> Any:  # noqa: ANN401
        """The state of that many streams before their first frame."""

    def update_online(
        self,
        state: Any,  # noqa: ANN401
        x: Tensor,
        mask: Tensor | None,
        control: Tensor | None,
        next_control: Tensor | None,
    ) -> tuple[Any, Any]:
        """Takes in a frame of every stream; returns what is known then, and the new state."""

    def forecast_online(self, state: Any, steps: int, controls: Tensor | None) -> Tensor:  # noqa: ANN401
        """Mean frames `(batch, steps, *frame)` of the steps to come."""


class FilterUpdate(NamedTuple):
    r"""What an online filter of a step model knows after a frame.

    The batch shape is `(batch,)`, or `(particles, batch)`; particles count by their weights.

    Attributes:
        posteriors: :math:`q(z_t)` of each latent site; the prior where the frame is missing.
        values: The draw of each latent site, `(*batch, ...)`.
        log_likelihood: :math:`\log p(x_t \mid z_t, s_{t-1})` at the draw, `(*batch)`, nats; zero
            where the frame is missing.
        divergence: :math:`KL(q \| p)`, in closed form where one is registered, `(*batch)`, nats.
        log_evidence: Estimate of :math:`\log p(x_t \mid x_{<t})`, the log of the mean weight
            :math:`p(x_t, z_t) / q(z_t)` of the draws, `(batch,)`, nats.
        log_weights: Normalised, `(particles, batch)`; zeros `(batch,)` for a single draw.
        prediction: Distribution of the next frame given a draw of :math:`z_{t+1}` from its prior,
            of batch shape `(*batch)`; None if none was asked for.
        next_frame: Its mean, over the particles too, `(batch, *frame)`, or None.
    """

    posteriors: dict[str, Any]
    values: dict[str, Tensor]
    log_likelihood: Tensor
    divergence: Tensor
    log_evidence: Tensor
    log_weights: Tensor
    prediction: Any
    next_frame: Tensor | None

    @property
    def free_energy(self) -> Tensor:
        """Minus the bound of this step at the draw, `(*batch)`, nats."""
        return self.divergence - self.log_likelihood


class OnlineState(NamedTuple):
    """All that an online filter of a step model remembers.

    Attributes:
        model: State of the model.
        guide: State of the guide.
        log_weights: As in :class:`FilterUpdate`.
    """

    model: Any
    guide: Any
    log_weights: Tensor


class Streams:
    """A filtering guide as an :class:`OnlineGuide`.

    Args:
        guide: The guide.
        particles: Number of draws side by side, or None for one.
        predict: Whether next frames are predicted.

    Raises:
        ValueError: When the guide needs later frames.
    """

    def __init__(
        self, guide: FilteringGuide, particles: int | None = None, predict: bool = True
    ) -> None:
        if not guide.online:
            raise ValueError(
                f"guide must need no later frame to filter streams; {type(guide).__name__} reads "
                "the whole sequence (online = False). Call the guide on sequences, or use one "
                "that filters"
            )
        self.guide, self.particles, self.predict = guide, particles, predict
        self._sites: list[str] = []

    def start_online(self, batch: int) -> OnlineState:
        """State of model and guide before the first frame, particles of equal weight."""
        shape = Size((batch,) if self.particles is None else (self.particles, batch))
        state = self.guide.initial(shape)
        like = next(self.guide.model.parameters(), torch.empty(0))
        equal = like.new_full(shape, -math.log(self.particles or 1))
        return OnlineState(state.model, state.guide, equal)

    def update_online(
        self,
        state: OnlineState,
        x: Tensor,
        mask: Tensor | None = None,
        control: Tensor | None = None,
        next_control: Tensor | None = None,
    ) -> tuple[FilterUpdate, OnlineState]:
        """One step of the guide, and of the model from the prior for the prediction."""
        guide, shape = self.guide, state.log_weights.shape
        check_streams(shape[-1], None, guide.model.controls, x, mask, control, next_control)
        seen, here = (None if part is None else part.unsqueeze(1) for part in (mask, control))
        guide.model.check(x.unsqueeze(1), seen, here)
        before = FilterState(state.model, state.guide)
        (frame,), _ = guide.frames(x.unsqueeze(1), seen, here, before, shape, defer=False)
        step = guide.advance(before, frame, shape)
        names = [site.name for site in step.sites]
        self._sites = self._sites or names
        check_names(self._sites, names)
        divergence, sampled = (
            torch.stack([site.divergence(shape, analytic) for site in step.sites]).sum(0)
            for analytic in (True, False)
        )
        nats = torch.stack([each.log_prob for each in step.likelihood]).sum(0)
        evidence, log_weights = self._weigh(state.log_weights, nats - sampled)
        prediction: Any = None
        next_frame: Tensor | None = None
        if self.predict:
            ahead, _ = self._ahead(step.state.model, shape, next_control)
            prediction, next_frame = ahead.prior, self._mean(ahead.value, log_weights)
        update = FilterUpdate(
            {site.name: site.posterior for site in step.sites},
            {site.name: site.value for site in step.sites},
            nats,
            divergence,
            evidence,
            log_weights,
            prediction,
            next_frame,
        )
        if self.particles is None:
            return update, OnlineState(step.state.model, step.state.guide, log_weights)
        after, log_weights = resampled(step.state, log_weights, mask)
        return update, OnlineState(after.model, after.guide, log_weights)

    def forecast_online(
        self, state: OnlineState, steps: int, controls: Tensor | None = None
    ) -> Tensor:
        """The model alone, its frames replaced by their means."""
        shape, inner, frames = state.log_weights.shape, state.model, []
        self.guide.model.check_controls(controls, shape[-1], steps)
        for number in range(steps):
            control = None if controls is None else controls[:, number]
            ahead, inner = self._ahead(inner, shape, control)
            frames.append(self._mean(ahead.value, state.log_weights))
        return torch.stack(frames, 1)

    def _ahead(
        self,
        state: Any,  # noqa: ANN401
        shape: Size,
        control: Tensor | None,
    ) -> tuple[LatentSite, Any]:
        """The site of the next frame, its value at the mean, and the model's state after it."""
        model = self.guide.model
        if model.controls and control is None:
            like = next(model.parameters(), torch.empty(0))
            control = like.new_zeros(*shape, model.controls)
        elif control is not None:
            control = control.expand(*shape, -1)
        sites = InferSites(_prior_and_mean_frame, shape)
        with sites:
            after = model.step(state, None, control)
        frame = next((site for site in sites.latents if site.name == FRAME), None)
        if frame is None:
            raise ValueError("the step must sample the frame: pyro.sample('x', ..., obs=x_t)")
        return frame, after

    def _weigh(self, log_weights: Tensor, step: Tensor) -> tuple[Tensor, Tensor]:
        """Log evidence of the step, and the normalised log weights after it."""
        if self.particles is None:
            return step, log_weights
        joint = log_weights + step
        evidence = joint.logsumexp(0)
        return evidence, joint - evidence

    def _mean(self, frames: Tensor, log_weights: Tensor) -> Tensor:
        """Mean over the particles, if there are any."""
        if self.particles is None:
            return frames
        weights = log_weights.exp()
        return (weights.reshape(*weights.shape, *(1,) * (frames.dim() - 2)) * frames).sum(0)


def _prior_and_mean_frame(site: LatentSite) -> Any:  # noqa: ANN401
    """The prior of a latent; of the frame, which nobody observed yet, a point at its mean."""
    if site.name != FRAME:
        return site.prior
    return dist.Delta(predicted(site.prior), event_dim=len(site.prior.event_shape))


def check_streams(
    batch: int,
    frame: tuple[int, ...] | None,
    controls: int,
    x: Tensor,
    mask: Tensor | None,
    control: Tensor | None,
    next_control: Tensor | None,
) -> None:
    """Raises a ValueError that names the argument that is not one step of every stream.

    Args:
        batch: Number of streams.
        frame: Shape of a frame, or None where it is not known.
        controls: Size of a control.
        x: Should be `(batch, *frame)`.
        mask: Should be `(batch,)`.
        control: Should be `(batch, controls)`.
        next_control: Should be `(batch, controls)`.
    """
    tail = tuple(x.shape[1:]) if frame is None else frame
    for name, value, words, shape in (
        ("x", x, ", *frame", (batch, *tail)),
        ("mask", mask, "", (batch,)),
        ("control", control, ", controls", (batch, controls)),
        ("next_control", next_control, ", controls", (batch, controls)),
    ):
        if value is not None and value.shape != shape:
            raise ValueError(
                f"{name} must be (batch{words}) = {shape}, one step of each of the {batch} "
                f"streams; got shape {tuple(value.shape)}"
            )
