r"""Bounds on the evidence of a step model, computed in one pass of model and guide together.

.. math:: \mathcal{L} = \sum_t E_q\big[\log p(x_t \mid z_t, s_{t-1})
    - KL(q(z_t \mid \cdot)\, \|\, p(z_t \mid s_{t-1}))\big]

References:
    Marino, Cvitkovic, Yue (2018), A general method for amortizing variational filtering.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any, NamedTuple

import pyro
import torch
from pyro.infer import ELBO
from pyro.nn import PyroModule
from pyro.poutine.runtime import am_i_wrapped, effectful
from torch import Size, Tensor

from pyro_seq.guides.context import Frame
from pyro_seq.guides.filtering import FilteringGuide, FilterState, Step
from pyro_seq.inference.terms import (
    check_sites,
    divergence,
    divergences,
    log_likelihood,
    log_likelihoods,
)
from pyro_seq.inference.together import priors_can_wait, step_together
from pyro_seq.models.step_model import SplitState, StepModel
from pyro_seq.nn.repeated import repeated
from pyro_seq.ops.trees import stack

__all__ = ["FilteringELBO", "Filtered", "StepELBO", "filter_sequences", "start", "with_objective"]

Between = Callable[[Tensor, Frame, FilterState], FilterState]


class Filtered(NamedTuple):
    r"""The terms of a bound for every step, nats; padding and missing frames count zero.

    Attributes:
        log_likelihood: :math:`\log p(x_t \mid z_t, s_{t-1})` at the draw, `(time, *batch)`.
        divergence: :math:`KL(q \| p)` of the step, or its value at the draw, `(time, *batch)`.
        objective: What else trains the guide, `(*batch)` or None; no part of the bound.
        state: State of model and guide after the last step.
    """

    log_likelihood: Tensor
    divergence: Tensor
    objective: Tensor | None
    state: FilterState

    @property
    def free_energy(self) -> Tensor:
        """Minus the bound of each step, `(time, *batch)`, nats."""
        return self.divergence - self.log_likelihood


def filter_sequences(
    guide: FilteringGuide,
    x: Tensor,
    mask: Tensor | None = None,
    controls: Tensor | None = None,
    *,
    particles: int | None = None,
    analytic: bool = True,
    kl_weight: float | Tensor = 1.0,
    state: FilterState | None = None,
    between: Between | None = None,
) -> Filtered:
    r"""Runs a guide and its model through sequences, each step once.

    Args:
        guide: The guide; its model is the model.
        x: Frames `(batch, time, *frame)`; missing ones may be NaN.
        mask: bool `(batch, time)`, True where observed.
        controls: u, `(batch, time, controls)`.
        particles: Number of draws side by side, a first dimension of the batch shape; None for one
            draw without it.
        analytic: Whether divergences have their closed form, where one is registered.
        kl_weight: Weight of the KL terms in what the guide minimises inside a step; the terms
            that are returned are not weighted.
        state: To go on from, as returned for the frames before; its batch shape is that of this
            call.
        between: Called after each step with the log weight of the step's draw,
            :math:`\log p(x_t, z_t) - \log q(z_t)` or with closed forms in it, `(*batch)`, with
            what the step read, and with the state; returns the state to go on from. Emissions are
            then scored inside the loop.

    Returns:
        The terms of the bound, and the state to go on from.

    Raises:
        ValueError: When a shape does not fit, or the latent sites differ between steps.
    """
    model = guide.model
    model.check(x, mask, controls)
    if between is None and mask is not None and _is_complete(mask):
        mask = None
    shape = Size(((particles,) if particles else ()) + (x.shape[0],))
    over_time = Size((x.shape[1], *shape))
    state = guide.initial(shape) if state is None else state
    frames, memory = guide.frames(x, mask, controls, state, shape)
    if between is None and priors_can_wait(guide, frames):
        whole = step_together(guide, frames, state, shape, kl_weight)
        if whole is not None:
            check_sites(whole, [])
            nats = log_likelihoods(model, whole.latents, x, mask, over_time)
            after = _with_memory(whole.state, memory)
            return Filtered(nats, divergence(whole, over_time, analytic), whole.objective, after)
    deferred = frames[0].deferred
    if deferred:
        state = _with_memory(state, None)
    steps: list[Step] = []
    seen, kept = [], []  # terms of each step, where they are not left for after the loop
    with repeated(len(frames)):
        for frame in frames:
            step = guide.advance(state, frame, shape, kl_weight=kl_weight)
            check_sites(step, steps)
            steps.append(step)
            state = step.state
            if between is not None or not deferred:
                seen.append(log_likelihood(model, step, frame, shape))
            if between is not None:
                kept.append(divergence(step, shape, analytic))
                state = between(seen[-1] - kept[-1], frame, state)
    if not seen:
        latents = stack([step.latents for step in steps])
    nats = torch.stack(seen) if seen else log_likelihoods(model, latents, x, mask, over_time)
    spent = torch.stack(kept) if kept else divergences(steps, shape, analytic)
    objectives = [step.objective for step in steps if step.objective is not None]
    objective = torch.stack(objectives).sum(0) if objectives else None
    return Filtered(nats, spent, objective, _with_memory(state, memory) if deferred else state)


class StepELBO(ELBO):
    """What the bounds of step models have in common; a subclass has ``differentiable_loss``."""

    def __init__(self, num_particles: int = 1) -> None:
        super().__init__(num_particles=num_particles)
        if num_particles < 1:
            raise ValueError(f"num_particles must be at least 1; got {num_particles}")

    def differentiable_loss(
        self,
        model: StepModel,
        guide: FilteringGuide,
        x: Tensor,
        mask: Tensor | None = None,
        controls: Tensor | None = None,
    ) -> Tensor:
        """Minus the bound summed over the batch, nats, with its gradient.

        Args:
            model: The model of the guide.
            guide: The guide.
            x: Frames `(batch, time, *frame)`.
            mask: bool `(batch, time)`, True where observed.
            controls: u, `(batch, time, controls)`.

        Returns:
            (), nats.
        """
        raise NotImplementedError

    def loss(self, model: StepModel, guide: FilteringGuide, *args: Any, **kwargs: Any) -> float:  # noqa: ANN401
        """Minus the bound summed over the batch, without weights; nats."""
        with torch.no_grad():
            return self.differentiable_loss(model, guide, *args, **kwargs).item()

    def loss_and_grads(
        self,
        model: StepModel,
        guide: FilteringGuide,
        *args: Any,  # noqa: ANN401
        **kwargs: Any,  # noqa: ANN401
    ) -> float:
        """The objective as a number, with its gradient left in the parameters."""
        loss = self.differentiable_loss(model, guide, *args, **kwargs)
        loss.backward()
        return loss.item()

    def _get_trace(self, model: Any, guide: Any, args: Any, kwargs: Any) -> Any:  # noqa: ANN401
        """Part of Pyro's interface; these bounds need no traces."""
        raise NotImplementedError


class FilteringELBO(StepELBO):
    r"""Evidence lower bound of a step model and a filtering guide, in one pass.

    Value and gradient are those of ``Trace_ELBO`` on the unrolled pair (``analytic=False``) or of
    ``TraceMeanField_ELBO`` (``analytic=True``), with the model's step run once and nothing read
    back from the device. A guide that stops gradients has its own gradient.

    Args:
        num_particles: Draws, over which the bound is averaged.
        analytic: Whether KL divergences have their closed form, where one is registered.
        kl_weight: Weight of the KL terms while gradients are recorded. The objective is then
            no bound; without gradients (``torch.no_grad``) the weight is always 1.

    Example:
        >>> from pyro_seq.guides import NeuralFilter
        >>> from pyro_seq.models import DMM
        >>> model = DMM(frame=3, latent=2, hidden=8)
        >>> loss = FilteringELBO()(model, NeuralFilter(model, hidden=8))
        >>> loss(torch.ones(4, 6, 3)).shape
        torch.Size([])
    """

    def __init__(
        self,
        num_particles: int = 1,
        *,
        analytic: bool = True,
        kl_weight: float | Tensor = 1.0,
    ) -> None:
        super().__init__(num_particles)
        self.analytic = analytic
        self.kl_weight = kl_weight

    def differentiable_loss(
        self,
        model: StepModel,
        guide: FilteringGuide,
        x: Tensor,
        mask: Tensor | None = None,
        controls: Tensor | None = None,
    ) -> Tensor:
        """Free energy summed over the batch, nats; weighted while gradients are recorded.

        Arguments as in :class:`StepELBO`.
        """
        start(model, guide)
        weight = self.kl_weight if torch.is_grad_enabled() else 1.0
        particles = None if self.num_particles == 1 else self.num_particles
        terms = filter_sequences(
            guide,
            x,
            mask,
            controls,
            particles=particles,
            analytic=self.analytic,
            kl_weight=weight,
        )
        total = (weight * terms.divergence - terms.log_likelihood).sum() / self.num_particles
        return with_objective(total, terms.objective, self.num_particles)


def with_objective(total: Tensor, objective: Tensor | None, particles: int) -> Tensor:
    """The value of a loss with the gradient of loss and objective."""
    if objective is None or not objective.requires_grad:
        return total
    extra = objective.sum() / particles
    return total + (extra - extra.detach())


def start(model: object, guide: object) -> None:
    """Checks that guide and model belong together, and shows their parameters to Pyro.

    Raises:
        TypeError: When the guide is no filtering guide.
        ValueError: When the guide is of another model, or a parameter is random.
    """
    if not isinstance(guide, FilteringGuide):
        raise TypeError(
            f"guide must be a FilteringGuide; got {type(guide).__name__}. "
            "Other guides go with Trace_ELBO"
        )
    if guide.model is not model:
        raise ValueError("guide must be the guide of this model; it was made for another one")
    for module in (guide.model, guide):
        for part in module.modules():
            if isinstance(part, PyroModule) and part._pyro_samples:
                raise ValueError(
                    f"parameters must not be random; got the PyroSample {list(part._pyro_samples)}"
                    f" of {type(part).__name__}. Use Trace_ELBO for such a model"
                )
        if not pyro.settings.get("module_local_params"):
            module.announce()
        elif am_i_wrapped():
            _show_local_parameters(module)


def _show_local_parameters(module: PyroModule) -> None:
    """Shows to Pyro's handlers the parameters that no store holds, so that its SVI steps them.

    Pyro's own messages of network parameters lack what its SVI asks of each, `unconstrained`.
    """
    for name, parameter in module.named_parameters(module._pyro_name):
        value: Any = parameter.view_as(parameter)
        value.unconstrained = weakref.ref(parameter)
        effectful(type="param")(lambda *_, value=value, **__: value)(name, name=name)


def _is_complete(mask: Tensor) -> bool:
    """Whether nothing is missing; assumed otherwise on a device that one would wait for."""
    return mask.device.type == "cpu" and bool(mask.all())


def _with_memory(state: FilterState, memory: Any) -> FilterState:  # noqa: ANN401
    """The state with another memory of a split model's embedding, which the loop does not read."""
    return FilterState(SplitState(state.model.state, memory), state.guide)
