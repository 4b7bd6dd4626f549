"""The handler that turns a model's step into a step of its guide."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import pyro.distributions as dist
import torch
from pyro.distributions.util import broadcast_shape, scale_and_mask
from pyro.poutine.messenger import Messenger
from pyro.poutine.runtime import Message
from pyro.poutine.util import site_is_subsample
from torch import Size, Tensor

from pyro_seq.distributions.parameters import divergence, free_parameters, prior_where
from pyro_seq.models.step_handlers import in_support, is_likelihood, predicted, spread

__all__ = ["InferSites", "LatentSite", "Likelihood", "check_names", "site_parameters"]


class LatentSite(NamedTuple):
    """A latent of one step.

    Attributes:
        name: Name in the step.
        prior: p, given the state and the earlier latents of the step.
        earlier: Values of the earlier latents of the step, by name.
        posterior: q; None while it is being chosen.
        value: A draw of q; None while q is being chosen.
        scale: Factor on the site's log density, from handlers inside the step.
        mask: Where the site counts, from handlers inside the step.
    """

    name: str
    prior: Any
    earlier: dict[str, Tensor]
    posterior: Any = None
    value: Any = None
    scale: Any = 1.0
    mask: Any = None

    def divergence(self, batch_shape: Size, analytic: bool = True) -> Tensor:
        """KL(q || p), or log q - log p of the draw; `batch_shape`, nats."""
        nats = divergence(self.posterior, self.prior, self.value, analytic)
        return over_batch(scale_and_mask(nats, self.scale, self.mask), batch_shape)


class Likelihood(NamedTuple):
    """An observed site of one step.

    Attributes:
        name: Name in the step.
        distribution: What it was drawn from.
        log_prob: `(*batch)`, nats, zero where nothing was seen.
    """

    name: str
    distribution: Any
    log_prob: Tensor


class InferSites(Messenger):
    """Runs a model's step with each latent drawn from its posterior.

    The innermost handler. To those outside a latent is a sample site of the guide; an observed
    site is recorded and hidden.

    Args:
        choose: From a latent site to its posterior.
        batch_shape: Batch shape of the step.
        seen: Where the frame was seen, bool `(*batch)`, or None for everywhere.
        informed: Where the posterior may differ from the prior, or None for everywhere.
        hidden: Whether the latents too are hidden from the handlers outside.
        stop_gradients: Whether the model goes on with draws that carry no gradient.

    Attributes:
        latents: The latent sites met, in order.
        likelihoods: The observed sites met, in order.
    """

    def __init__(
        self,
        choose: Callable[[LatentSite], Any],
        batch_shape: Size,
        seen: Tensor | None = None,
        informed: Tensor | None = None,
        *,
        hidden: bool = True,
        stop_gradients: bool = False,
    ) -> None:
        super().__init__()
        self.choose = choose
        self.batch_shape = batch_shape
        self.seen = seen
        self.informed = informed
        self.hidden = hidden
        self.stop_gradients = stop_gradients
        self.latents: list[LatentSite] = []
        self.likelihoods: list[Likelihood] = []
        self._open: LatentSite | None = None

    def __enter__(self) -> InferSites:
        super().__enter__()
        return self

    def _pyro_sample(self, msg: Message) -> None:
        self._open = None
        if site_is_subsample(msg):
            msg["stop"] = self.hidden
        elif msg["is_observed"]:
            msg["stop"] = True
            if is_likelihood(msg):
                self._score(msg)
        else:
            msg["stop"] = self.hidden
            self._infer(msg)

    def _pyro_post_sample(self, msg: Message) -> None:
        if self._open is None:
            return
        value: Any = msg["value"]
        self.latents.append(self._open._replace(value=value))
        self._open = None
        if self.stop_gradients:
            msg["value"] = value.detach()

    def _infer(self, msg: Message) -> None:
        prior: Any = msg["fn"]
        shape = _batch_shape_of(str(msg["name"]), prior, self.batch_shape)
        if prior.batch_shape != shape:
            prior = prior.expand(shape)
        earlier = {site.name: site.value for site in self.latents}
        site = LatentSite(str(msg["name"]), prior, earlier, scale=msg["scale"], mask=msg["mask"])
        missing = None if self.informed is None else ~self.informed
        posterior = prior_where(missing, self.choose(site), prior)
        self._open = site._replace(posterior=posterior)
        msg["fn"] = posterior

    def _score(self, msg: Message) -> None:
        fn: Any = msg["fn"]
        value: Any = msg["value"]
        mask: Any = msg["mask"]
        if self.seen is not None:
            mask = self.seen if mask is None else mask & self.seen
            if not isinstance(fn, dist.Unit):
                value = in_support(fn, value, self.seen)
                msg["value"] = torch.where(spread(self.seen, fn), value, predicted(fn))
        nats = scale_and_mask(fn.log_prob(value), msg["scale"], mask)
        nats = over_batch(nats, self.batch_shape)
        self.likelihoods.append(Likelihood(str(msg["name"]), fn, nats))


def _batch_shape_of(name: str, prior: Any, batch_shape: Size) -> Size:  # noqa: ANN401
    try:
        return broadcast_shape(prior.batch_shape, batch_shape)
    except ValueError:
        raise ValueError(
            f"the batch shape of the site '{name}' must fit that of the batch, "
            f"{tuple(batch_shape)}; got {tuple(prior.batch_shape)}. Declare the dimensions of one "
            "value with .to_event(n)"
        ) from None


def site_parameters(site: LatentSite) -> dict[str, Tensor]:
    """Free parameters of a site's prior.

    Raises:
        ValueError: When it is not reparametrised; the message says which guide can go on.
    """
    try:
        return free_parameters(site.prior)
    except ValueError as error:
        raise ValueError(
            f"the latent site '{site.name}' cannot be inferred by this guide: {error}. "
            "The guide 'bootstrap' draws it from its prior; train such a pair with Pyro's "
            "Trace_ELBO"
        ) from None


def check_names(known: Iterable[str], names: Iterable[str]) -> None:
    """Raises a ValueError when a step has other latents than the guide knows."""
    if [*known] != [*names]:
        raise ValueError(
            f"the latent sites of a step must be the same at every step, {[*known]}; got "
            f"{[*names]}"
        )


def over_batch(nats: Any, batch_shape: Size) -> Tensor:  # noqa: ANN401
    """Log densities with one number for each element of the batch.

    Dimensions of plates inside the step, to the left of the batch, are summed.

    Raises:
        ValueError: When the log density lacks the batch or has dimensions to its right.
    """
    if nats.shape == batch_shape:
        return nats
    extra = nats.dim() - len(batch_shape)
    if extra > 0 and nats.shape[extra:] == batch_shape:
        return nats.sum(tuple(range(extra)))
    try:
        return nats.expand(batch_shape)
    except RuntimeError:
        raise ValueError(
            f"a site's log density must have the shape of the batch, {tuple(batch_shape)}; got "
            f"{tuple(nats.shape)}. Declare the dimensions of one value with .to_event(n)"
        ) from None
