r"""All steps of a sequence at once, where nothing in the factorisation asks for a loop.

.. math:: q(z_{1:T} \mid x) = \prod_t q(z_t \mid x_{\le t}), \qquad s_t = f(z_t, e_t)

A filter that reads no latent draws all of them side by side. If the model's transition has no
memory of its own, every state, and so every prior, is then known too.
"""

from __future__ import annotations

from typing import Any

import pyro
import torch
from torch import Size, Tensor

from pyro_seq.guides.context import Frame, StepContext
from pyro_seq.guides.filtering import FilteringGuide, FilterState, Step
from pyro_seq.guides.sites import InferSites, LatentSite
from pyro_seq.models.step_model import SplitState, SplitStepModel
from pyro_seq.ops.trees import map_tensors, stack

__all__ = ["needs_no_loop", "step_together"]


def needs_no_loop(guide: FilteringGuide, frames: list[Frame]) -> bool:
    """Whether these steps can be run side by side.

    The guide reads no latent of an earlier step, the model's transition nothing of the state
    before it, the emission is scored after the loop, and no frame is missing.
    """
    model = guide.model
    memoryless = isinstance(model, SplitStepModel) and model.memoryless
    return memoryless and guide.parallel and frames[0].deferred and frames[0].seen is None


def step_together(
    guide: FilteringGuide,
    frames: list[Frame],
    state: FilterState,
    shape: Size,
    kl_weight: float | Tensor = 1.0,
) -> Step:
    """Every step of a sequence as one, its batch shape `(time, *batch)`.

    Args:
        guide: A guide for which :func:`needs_no_loop`.
        frames: What the steps read.
        state: Before the first of them.
        shape: Batch shape of a step.
        kl_weight: Weight of the KL terms in what the guide minimises inside a step.

    Returns:
        The sites and latents of all steps, and the state after the last.
    """
    model: Any = guide.model
    over_time = Size((len(frames), *shape))
    frame = stack(frames)
    first = state.model.state
    with torch.no_grad(), InferSites(lambda site: site.prior, shape):
        form = model.latents(first, frames[0].control)
    unknown = map_tensors(lambda part: part.new_zeros(over_time + part.shape[len(shape) :]), form)

    def before(latents: Any) -> tuple[Any, Any]:  # noqa: ANN401
        """The states before every step, and that after the last."""
        after = model.transition(first, latents, frame.embedding, frame.control)
        shifted = map_tensors(
            lambda one, all_: torch.cat([one.unsqueeze(0), all_[:-1]]), first, after
        )
        return shifted, map_tensors(lambda part: part[-1], after)

    guess, _ = before(unknown)
    context = StepContext(model, SplitState(guess, None), frame, over_time, kl_weight)
    inference = guide.infer(context, None)
    drawn = InferSites(inference.choose, over_time)
    with drawn:
        latents = model.latents(guess, frame.control)
    states, last = before(latents)
    latents, sites = _with_values(model, states, frame, drawn.latents)
    return Step(sites, [], latents, inference.objective, FilterState(SplitState(last, None), None))


def _with_values(
    model: SplitStepModel,
    states: Any,  # noqa: ANN401
    frame: Frame,
    drawn: list[LatentSite],
) -> tuple[Any, list[LatentSite]]:
    """The latents given the states, and the sites with the priors that these states give."""
    values = {site.name: site.value for site in drawn}
    with pyro.poutine.block(), pyro.poutine.trace() as traced, pyro.condition(data=values):
        latents = model.latents(states, frame.control)
    nodes = traced.trace.nodes
    return latents, [
        site._replace(
            prior=nodes[site.name]["fn"],
            scale=nodes[site.name]["scale"],
            mask=nodes[site.name]["mask"],
        )
        for site in drawn
    ]
