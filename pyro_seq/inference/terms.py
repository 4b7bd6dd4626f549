"""The terms of a bound: what the steps of a model and its guide say in nats."""

from __future__ import annotations

from typing import Any

import torch
from torch import Size, Tensor

from pyro_seq.distributions.stacking import stack_pairs
from pyro_seq.guides.context import Frame, emission_log_prob
from pyro_seq.guides.filtering import Step
from pyro_seq.guides.sites import LatentSite
from pyro_seq.models.step_model import SplitStepModel, StepModel

__all__ = ["check_sites", "divergence", "divergences", "log_likelihood", "log_likelihoods"]


def log_likelihood(model: StepModel, step: Step, frame: Frame, shape: Size) -> Tensor:
    """Log density of what a step observed, `shape`, nats."""
    if frame.deferred and isinstance(model, SplitStepModel):
        return emission_log_prob(model.emission(step.latents), frame.x, frame.seen, shape)
    if not step.likelihood:
        raise ValueError("the step must sample the frame: pyro.sample('x', ..., obs=x_t)")
    return torch.stack([each.log_prob for each in step.likelihood]).sum(0)


def divergence(step: Step, shape: Size, analytic: bool) -> Tensor:
    """Sum of the divergences of a step's latents, `shape`, nats."""
    parts = [site.divergence(shape, analytic) for site in step.sites]
    return sum(parts[1:], parts[0])


def divergences(steps: list[Step], shape: Size, analytic: bool) -> Tensor:
    """Sums of the divergences of each step's latents, `(time, *shape)`, nats."""
    sites = zip(*(step.sites for step in steps), strict=True)
    parts = [_site_divergences(list(column), shape, analytic) for column in sites]
    return sum(parts[1:], parts[0])


def _site_divergences(sites: list[LatentSite], shape: Size, analytic: bool) -> Tensor:
    """Divergences of one site at all steps: all at once, if its distributions go together."""
    first = sites[0]
    plain = all(s.mask is None and isinstance(s.scale, float) and s.scale == 1.0 for s in sites)
    pair = None
    if plain and first.prior.batch_shape == shape:
        pair = stack_pairs([s.posterior for s in sites], [s.prior for s in sites])
    if pair is None:
        return torch.stack([site.divergence(shape, analytic) for site in sites])
    values = torch.stack([site.value for site in sites])
    return first._replace(posterior=pair[0], prior=pair[1], value=values).divergence(
        Size((len(sites), *shape)), analytic
    )


def check_sites(step: Step, before: list[Step]) -> None:
    """Raises an error when a step cannot be part of a bound with a gradient."""
    names = [site.name for site in step.sites]
    first = [site.name for site in before[0].sites] if before else names
    if names != first or not names:
        raise ValueError(
            f"the latent sites of a step must be the same at every step, {first or 'one or more'};"
            f" got {names or 'none'} at step {len(before) + 1}"
        )
    if torch.is_grad_enabled() and not before:
        for site in step.sites:
            if not site.posterior.has_rsample:
                core: Any = site.prior
                while hasattr(core, "base_dist"):
                    core = core.base_dist
                raise ValueError(
                    f"the latent site '{site.name}' must be reparametrised for this gradient; got "
                    f"{type(core).__name__}. Train the pair with Pyro's Trace_ELBO, which "
                    "has a score-function gradient"
                )


def log_likelihoods(
    model: StepModel,
    latents: Any,  # noqa: ANN401
    x: Tensor,
    mask: Tensor | None,
    over_time: Size,
) -> Tensor:
    """Log densities of all frames at once, `(time, *batch)`, nats."""
    assert isinstance(model, SplitStepModel)
    emission = model.emission(latents)
    ones = (1,) * (len(over_time) - 2)

    def first_time(t: Tensor) -> Tensor:
        t = t.transpose(0, 1)
        return t.reshape(t.shape[0], *ones, *t.shape[1:])

    seen = None if mask is None else first_time(mask).expand(over_time)
    frames = first_time(x if mask is None else torch.nan_to_num(x))
    frames = frames.expand(*over_time, *x.shape[2:])
    return emission_log_prob(emission, frames, seen, over_time)
