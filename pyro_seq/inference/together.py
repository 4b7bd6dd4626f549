r"""The latents of all steps first, and then what depends on them, all steps at once.

.. math:: s_t = f(z_t, e_t): \qquad z_1, \dots, z_T \text{ known, all }
    p(z_t \mid s_{t-1}) \text{ and } p(x_t \mid z_t, s_{t-1}) \text{ are}

If a model's transition has no memory of its own, priors may wait until every latent is drawn,
unless the guide reads them. A guide that reads no latent of an earlier step draws all of them side
by side; any other draws them one after another.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import pyro.distributions as dist
import torch
from torch import Size, Tensor

from pyro_seq.distributions.stacking import stack_distributions
from pyro_seq.guides.context import Frame, StepContext, is_substitutable, substitute
from pyro_seq.guides.filtering import Choose, FilteringGuide, FilterState, Step
from pyro_seq.guides.sites import InferSites, LatentSite
from pyro_seq.models.step_handlers import predicted
from pyro_seq.models.step_model import SplitState, SplitStepModel
from pyro_seq.nn.repeated import repeated
from pyro_seq.ops.trees import map_tensors, stack

__all__ = ["priors_can_wait", "step_together"]


class Form(NamedTuple):
    """What the latents of a step look like: what the emission reads, and the sites, of one step.

    Attributes:
        latents: As the model's `latents` returned them.
        sites: Its sites; what counts of their priors is family and shape.
    """

    latents: Any
    sites: list[LatentSite]

    def draw(self, choose: Choose, shape: Size) -> list[LatentSite]:
        """The sites with posteriors and draws; their priors are not those of the step."""
        sites: list[LatentSite] = []
        for site in self.sites:
            prior = site.prior if site.prior.batch_shape == shape else site.prior.expand(shape)
            site = site._replace(prior=prior, earlier={s.name: s.value for s in sites})
            posterior = choose(site)
            sites.append(site._replace(posterior=posterior, value=posterior.rsample()))
        return sites

    def past(self, guide: FilteringGuide, sites: list[LatentSite]) -> Any:  # noqa: ANN401
        """The latents with other values of the sites, for a transition that reads only these."""
        values = [site.value.detach() if guide.stops_gradients else site.value for site in sites]
        places = zip(self.sites, values, strict=True)
        return substitute(self.latents, {id(site.value): value for site, value in places})


class Drawn(NamedTuple):
    """What is known after the latents of all steps are drawn.

    Attributes:
        sites: With posteriors and draws, `(time, *batch)`.
        before: The model's own states before every step, `(time, *batch, ...)`.
        after: States of model and guide after the last.
        objective: What else trains the guide, or None.
    """

    sites: list[LatentSite]
    before: Any
    after: FilterState
    objective: Tensor | None


def priors_can_wait(guide: FilteringGuide, frames: list[Frame]) -> bool:
    """Whether priors are needed only once all latents are drawn.

    The model's transition reads nothing of the state before it, the guide nothing of priors, the
    emission is scored after the loop, and no frame is missing.
    """
    model = guide.model
    memoryless = isinstance(model, SplitStepModel) and model.memoryless
    return memoryless and not guide.reads_priors and frames[0].deferred and frames[0].seen is None


def step_together(
    guide: FilteringGuide,
    frames: list[Frame],
    state: FilterState,
    shape: Size,
    kl_weight: float | Tensor = 1.0,
) -> Step | None:
    """Every step of a sequence as one, its batch shape `(time, *batch)`.

    Args:
        guide: A guide for which :func:`priors_can_wait`.
        frames: What the steps read.
        state: Before the first of them.
        shape: Batch shape of a step.
        kl_weight: Weight of the KL terms in what the guide minimises inside a step.

    Returns:
        The sites and latents of all steps, and the state after the last; None if the latents of
        this model are of a kind that has to be drawn with their priors.
    """
    form = _form(guide, frames[0], state, shape)
    if form is None:
        return None
    run = _side_by_side if guide.parallel else _in_turn
    drawn = run(guide, form, frames, state, shape, kl_weight)
    values = {site.name: site.value for site in drawn.sites}
    known = InferSites(lambda site: _at(values[site.name], site), Size((len(frames), *shape)))
    model: Any = guide.model
    with known:
        latents = model.latents(drawn.before, stack([frame.control for frame in frames]))
    pairs = zip(known.latents, drawn.sites, strict=True)
    sites = [site._replace(posterior=own.posterior) for site, own in pairs]
    return Step(sites, [], latents, drawn.objective, drawn.after)


def _form(guide: FilteringGuide, frame: Frame, state: FilterState, shape: Size) -> Form | None:
    """The latents of the first step at the means of their priors, if they can be exchanged."""
    model: Any = guide.model
    first = state.model.state
    with torch.no_grad(), InferSites(lambda site: _at(predicted(site.prior), site), shape) as met:
        latents = model.latents(first, frame.control)
    plain = all(
        site.prior.has_rsample and stack_distributions([site.prior]) is not None
        for site in met.latents
    )
    exchangeable = is_substitutable(latents, met.latents, first)
    return Form(latents, met.latents) if plain and exchangeable else None


def _at(value: Tensor, site: LatentSite) -> Any:  # noqa: ANN401
    """A point."""
    return dist.Delta(value, event_dim=len(site.prior.event_shape), validate_args=False)


def _side_by_side(
    guide: FilteringGuide,
    form: Form,
    frames: list[Frame],
    state: FilterState,
    shape: Size,
    kl_weight: float | Tensor,
) -> Drawn:
    """Draws the latents of all steps at once."""
    model: Any = guide.model
    first, over_time, frame = state.model.state, Size((len(frames), *shape)), stack(frames)

    def states(sites: list[LatentSite]) -> tuple[Any, Any]:
        """Before every step, and after the last."""
        past = form.past(guide, sites)
        after = model.transition(first, past, frame.embedding, frame.control)
        before = map_tensors(
            lambda one, all_: torch.cat([one.unsqueeze(0), all_[:-1]]), first, after
        )
        return before, map_tensors(lambda part: part[-1], after)

    unknown = [
        site._replace(value=site.value.new_zeros(len(frames), *site.value.shape))
        for site in form.sites
    ]
    guess, _ = states(unknown)
    context = StepContext(model, SplitState(guess, None), frame, over_time, kl_weight)
    inference = guide.infer(context, state.guide)
    sites = form.draw(inference.choose, over_time)
    before, last = states(sites)
    return Drawn(
        sites, before, FilterState(SplitState(last, None), inference.state), inference.objective
    )


def _in_turn(
    guide: FilteringGuide,
    form: Form,
    frames: list[Frame],
    state: FilterState,
    shape: Size,
    kl_weight: float | Tensor,
) -> Drawn:
    """Draws the latents of one step after another."""
    model: Any = guide.model
    inner, own = state.model.state, state.guide
    before, rows, objectives = [], [], []
    with repeated(len(frames)):
        for frame in frames:
            context = StepContext(model, SplitState(inner, None), frame, shape, kl_weight)
            inference = guide.infer(context, own)
            sites = form.draw(inference.choose, shape)
            before.append(inner)
            rows.append(sites)
            objectives.append(inference.objective)
            own, past = inference.state, form.past(guide, sites)
            inner = model.transition(inner, past, frame.embedding, frame.control)
    gains = [objective for objective in objectives if objective is not None]
    return Drawn(
        [_over_time(column) for column in zip(*rows, strict=True)],
        stack(before),
        FilterState(SplitState(inner, None), own),
        torch.stack(gains).sum(0) if gains else None,
    )


def _over_time(column: tuple[LatentSite, ...]) -> LatentSite:
    """A site of all steps as one."""
    posterior = stack_distributions([site.posterior for site in column])
    if posterior is None:
        raise TypeError(
            f"q of '{column[0].name}' must be of the family of its prior if the guide has "
            f"reads_priors = False; got {type(column[0].posterior).__name__}"
        )
    return column[0]._replace(
        posterior=posterior, value=torch.stack([site.value for site in column])
    )
