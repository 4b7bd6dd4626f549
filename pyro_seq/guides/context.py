r"""What a filtering guide sees of one step.

.. math:: F_t(q) = -E_q[\log p(x_t \mid z_t, s_{t-1})] + \sum_i KL(q_i \| p_i)
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any, NamedTuple

import torch
from torch import Size, Tensor

from pyro_seq.distributions.parameters import prior_where
from pyro_seq.guides.sites import InferSites, LatentSite, over_batch
from pyro_seq.models.step_handlers import in_support
from pyro_seq.models.step_model import SplitStepModel, StepModel
from pyro_seq.nn.repeated import repeated
from pyro_seq.ops.trees import detach, leaves, map_tensors

__all__ = ["Frame", "LocalEnergy", "StepContext", "emission_log_prob"]


class Frame(NamedTuple):
    """What one step reads.

    Attributes:
        x: The frame `(*batch, *frame)`, zero where it is missing.
        seen: Where it was observed, bool `(*batch)`, or None for everywhere.
        informed: Where q may differ from the prior, bool `(*batch)`, or None for everywhere.
        control: `(*batch, controls)` or None.
        encoding: What the guide's :meth:`encode` made, `(*batch, ...)`, or None.
        embedding: What a split model's `embed` made, where it is known before the loop.
        deferred: Whether the emission is scored after the loop.
    """

    x: Tensor
    seen: Tensor | None = None
    informed: Tensor | None = None
    control: Tensor | None = None
    encoding: Any = None
    embedding: Tensor | None = None
    deferred: bool = False


class LocalEnergy(NamedTuple):
    r"""The free energy of one step at one draw of the latents, nats.

    Attributes:
        log_likelihood: :math:`\log p(x_t \mid z_t)`, `(*batch)`, zero where nothing was seen.
        sites: The latent sites with priors, posteriors and draws.
        emission: Distribution of the frame.
        kl_weight: Weight of the KL terms in the objective.
    """

    log_likelihood: Tensor
    sites: list[LatentSite]
    emission: Any
    kl_weight: float | Tensor

    @property
    def divergence(self) -> Tensor:
        """Sum of the KL terms, unweighted, `(*batch)`."""
        parts = [site.divergence(self.log_likelihood.shape) for site in self.sites]
        return sum(parts[1:], parts[0])

    @property
    def total(self) -> Tensor:
        r""":math:`F_t`, `(*batch)`; its KL terms have the weight of the objective."""
        return self.kl_weight * self.divergence - self.log_likelihood


class StepContext:
    """The model, its state and the frame of one step, and the step's free energy as a function.

    Args:
        model: The step model.
        state: Its state before the step; that of a split model is prepared here.
        frame: The frame.
        batch_shape: Batch shape of the step.
        kl_weight: Weight of the KL terms in the objective that is being minimised.
        stock: Whether the guide runs under a stock objective of Pyro, which differentiates
            through time and knows no objective beside the bound.
    """

    def __init__(
        self,
        model: StepModel,
        state: Any,  # noqa: ANN401
        frame: Frame,
        batch_shape: Size,
        kl_weight: float | Tensor = 1.0,
        stock: bool = False,
    ) -> None:
        self.model = model
        split = isinstance(model, SplitStepModel)
        self.state = model.prepared(state, frame.control) if split else state
        self.frame = frame
        self.batch_shape = batch_shape
        self.kl_weight = kl_weight
        self.stock = stock
        self._simple: tuple[Any, LatentSite] | None = None

    @property
    def visible(self) -> Any:  # noqa: ANN401
        """The part of the model's state that a guide may read."""
        return self.model.visible(self.state)

    def evaluate(self, choose: Callable[[LatentSite], Any], attached: bool = False) -> LocalEnergy:
        """Runs the step with these posteriors, unseen by Pyro's handlers.

        Args:
            choose: From a latent site to its posterior.
            attached: Whether priors keep their gradient through the model's state.

        Returns:
            The step's free energy, differentiable in the parameters of the posteriors.
        """
        state = self.state if attached else detach(self.state)
        if isinstance(self.model, SplitStepModel):
            return self._evaluate_split(self.model, state, choose, attached)
        sites = self._sites(choose)
        with sites, nullcontext() if attached else repeated(None):
            self.model.step(state, self.frame.x, self.frame.control)
        if not sites.likelihoods:
            raise ValueError("the step must sample the frame: pyro.sample('x', ..., obs=x_t)")
        nats = torch.stack([each.log_prob for each in sites.likelihoods]).sum(0)
        emission = sites.likelihoods[0].distribution
        return LocalEnergy(nats, sites.latents, emission, self.kl_weight)

    def _evaluate_split(
        self,
        model: SplitStepModel,
        state: Any,  # noqa: ANN401
        choose: Callable[[LatentSite], Any],
        attached: bool,
    ) -> LocalEnergy:
        """The same without what only the next step needs."""
        if self._simple is None:
            sites = self._sites(choose)
            with sites, nullcontext() if attached else repeated(None):
                latents = model.latents(state.state, self.frame.control)
            met = sites.latents
            if len(met) == 1 and is_substitutable(latents, met, state.state):
                self._simple = latents, met[0]
        else:
            old, site = self._simple
            missing = None if self.frame.informed is None else ~self.frame.informed
            posterior = prior_where(missing, choose(site), site.prior)
            met = [site._replace(posterior=posterior, value=posterior.rsample())]
            latents = substitute(old, {id(site.value): met[0].value})
        with repeated(None):
            emission = model.emission(latents)
        nats = emission_log_prob(emission, self.frame.x, self.frame.seen, self.batch_shape)
        return LocalEnergy(nats, met, emission, self.kl_weight)

    def _sites(self, choose: Callable[[LatentSite], Any]) -> InferSites:
        return InferSites(choose, self.batch_shape, self.frame.seen, self.frame.informed)


def emission_log_prob(
    emission: Any,  # noqa: ANN401
    x: Tensor,
    seen: Tensor | None,
    batch_shape: Size,
) -> Tensor:
    """Log density of frames where they were seen, zero elsewhere; `batch_shape`, nats."""
    nats = emission.log_prob(in_support(emission, x, seen))
    if seen is not None:
        nats = torch.where(seen, nats, torch.zeros_like(nats))
    return over_batch(nats, batch_shape)


def is_substitutable(latents: Any, sites: list[LatentSite], state: Any) -> bool:  # noqa: ANN401
    """Whether each tensor of the latents is a site's value itself, or the state's own."""
    known = {id(site.value) for site in sites} | {id(leaf) for leaf in leaves(state)}
    return all(id(leaf) in known for leaf in leaves(latents))


def substitute(latents: Any, values: dict[int, Tensor]) -> Any:  # noqa: ANN401
    """The latents with other values of the sites."""
    return map_tensors(lambda leaf: values.get(id(leaf), leaf), latents)
