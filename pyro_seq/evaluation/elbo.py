r"""Bounds on the log evidence of each sequence, :math:`\mathcal{L}(x_i) \le \log p(x_i)`."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from pyro import poutine
from pyro.poutine import Trace
from pyro.poutine.util import prune_subsample_sites
from torch import Tensor, nn

from pyro_seq.data import Batch
from pyro_seq.evaluation.bound import Bound
from pyro_seq.evaluation.context import as_batch, blocks, evaluating, place, stacked
from pyro_seq.evaluation.free_energy import free_energy
from pyro_seq.evaluation.step_pairs import as_step_pair, particle_terms, step_terms

__all__ = ["elbo", "fivo", "iwae"]

CHUNK = 64


def elbo(
    model: nn.Module,
    guide: nn.Module,
    batch: Tensor | tuple[Tensor, Tensor | None, Tensor | None],
    *,
    particles: int = 1,
    seed: int | None = None,
    chunk: int = CHUNK,
) -> Bound:
    r"""Evidence lower bound of each sequence.

    .. math::
        \mathcal{L}(x_i) = E_{q(z \mid x_i)}[\log p(x_i, z) - \log q(z \mid x_i)] \le \log p(x_i)

    Works for any pair whose sites are in one plate over sequences. A step model and its filtering
    guide run together in one pass, with divergences in closed form where one is registered
    (:func:`~pyro_seq.evaluation.free_energy` has them step by step). The objective is never
    weighted: a scaled site is an error.

    Args:
        model: Generative model, `forward(x, mask, controls)`.
        guide: Its guide, the same arguments.
        batch: A :class:`~pyro_seq.data.Batch`, or x alone, `(batch, time, *frame)`.
        particles: Draws from the guide that the expectation is a mean of.
        seed: Seed of the draws; None goes on with torch's present state. The draws depend on the
            seed, on `particles` and on `chunk`.
        chunk: Sequences times particles that are in memory at once.

    Returns:
        The bound.

    Raises:
        ValueError: If a site is scaled, is not per sequence, or is in only one of the pair, or if
            the model observes nothing.

    Example:
        >>> from pyro_seq.guides import KalmanGuide
        >>> from pyro_seq.models import KVAE
        >>> model = KVAE((1, 8, 8), decoder="mlp")
        >>> elbo(model, KalmanGuide(model, "mlp"), torch.zeros(3, 5, 1, 8, 8)).per_sequence.shape
        torch.Size([3])
    """
    _check_number(particles)
    if pair := as_step_pair(model, guide):
        return free_energy(*pair, batch, samples=particles, seed=seed, chunk=chunk).bound()
    return _bound("elbo", model, guide, batch, particles, seed, chunk)


def iwae(
    model: nn.Module,
    guide: nn.Module,
    batch: Tensor | tuple[Tensor, Tensor | None, Tensor | None],
    *,
    samples: int,
    seed: int | None = None,
    chunk: int = CHUNK,
) -> Bound:
    r"""Importance-weighted bound of each sequence; its expectation never falls as k grows.

    .. math::
        \mathcal{L}_k(x_i) = E\Big[\log \frac1k \sum_{s=1}^k
        \frac{p(x_i, z^{(s)})}{q(z^{(s)} \mid x_i)}\Big] \le \log p(x_i)

    Args:
        model: Generative model, `forward(x, mask, controls)`.
        guide: Its guide, the same arguments.
        batch: A :class:`~pyro_seq.data.Batch`, or x alone, `(batch, time, *frame)`.
        samples: k.
        seed: Seed of the draws, as in :func:`elbo`.
        chunk: Sequences times samples that are in memory at once.

    Returns:
        The bound.

    Raises:
        ValueError: As in :func:`elbo`.

    References:
        Burda, Grosse, Salakhutdinov (2016), Importance weighted autoencoders.
    """
    _check_number(samples)
    return _bound("iwae", model, guide, batch, samples, seed, chunk)


def fivo(
    model: nn.Module,
    guide: nn.Module,
    batch: Tensor | tuple[Tensor, Tensor | None, Tensor | None],
    *,
    particles: int,
    resample_below: float = 0.5,
    seed: int | None = None,
    chunk: int = CHUNK,
) -> Bound:
    r"""Bound of a particle filter whose proposal is the guide, for each sequence.

    .. math:: E[\log \hat p_N(x_i)] \le \log p(x_i)

    On long sequences it is far tighter than the importance-weighted bound of as many draws.

    Args:
        model: A step model.
        guide: Its filtering guide.
        batch: A :class:`~pyro_seq.data.Batch`, or x alone, `(batch, time, *frame)`.
        particles: N.
        resample_below: Effective sample size, as a fraction of N, below which the particles of a
            sequence are resampled.
        seed: Seed of the draws, as in :func:`elbo`.
        chunk: Sequences times particles that are in memory at once; those of a sequence are
            never apart.

    Returns:
        The bound.

    Raises:
        TypeError: If the pair is no step model with a filtering guide.
        ValueError: As in :func:`elbo`.

    References:
        Maddison, Lawson, Tucker, Heess, Norouzi, Mnih, Doucet, Teh (2017), Filtering variational
        objectives.
    """
    _check_number(particles)
    pair = as_step_pair(model, guide)
    if not pair:
        raise TypeError(
            "fivo needs a StepModel and a FilteringGuide; got "
            f"{type(model).__name__} and {type(guide).__name__}. Use iwae"
        )
    whole = as_batch(batch)
    with evaluating(model, guide, seed=seed):
        parts = [
            particle_terms(*pair, part, particles, resample_below)
            for part in blocks(whole, max(1, chunk // particles))
        ]
    columns = (torch.cat(column) for column in zip(*parts, strict=True))
    value, reconstruction, divergence = columns
    return Bound("fivo", particles, value, _steps(whole), reconstruction, divergence)


class _Terms(NamedTuple):
    """Log densities of draws, `(draws, sequences)` float64 on the CPU."""

    reconstruction: Tensor
    divergence: Tensor


def _check_number(samples: int) -> None:
    if samples < 1:
        raise ValueError(f"samples (particles) must be at least 1; got {samples}")


def _bound(
    name: str,
    model: nn.Module,
    guide: nn.Module,
    batch: Tensor | tuple[Tensor, Tensor | None, Tensor | None],
    samples: int,
    seed: int | None,
    chunk: int,
) -> Bound:
    whole = as_batch(batch)
    with evaluating(model, guide, seed=seed):
        parts = [_draws(model, guide, part, samples, chunk) for part in blocks(whole, chunk)]
    terms = _Terms(*(torch.cat(column, 1) for column in zip(*parts, strict=True)))
    weights = terms.reconstruction - terms.divergence
    value = weights.mean(0) if name == "elbo" else weights.logsumexp(0) - math.log(samples)
    return Bound(name, samples, value, _steps(whole), *(term.mean(0) for term in terms))


def _steps(batch: Batch) -> Tensor:
    """Observed steps of each sequence, `(sequences,)` float64 on the CPU."""
    if batch.mask is None:
        return torch.full(batch.x.shape[:1], float(batch.x.shape[1]), dtype=torch.float64)
    return batch.observed.cpu().double()


def _draws(model: nn.Module, guide: nn.Module, part: Batch, samples: int, chunk: int) -> _Terms:
    """All draws of a few sequences, as many at once as there is room for, along the batch."""
    if pair := as_step_pair(model, guide):
        terms = step_terms(*pair, part, samples, chunk, analytic=False)
        return _Terms(*(term.sum(-1) for term in terms))
    sequences = part.x.shape[0]
    passes = [
        [term.view(count, sequences) for term in _one_pass(model, guide, rows)]
        for count, rows in stacked(place(model, part), samples, chunk)
    ]
    return _Terms(*(torch.cat(column) for column in zip(*passes, strict=True)))


def _one_pass(model: nn.Module, guide: nn.Module, batch: Batch) -> _Terms:
    guide_trace = poutine.trace(guide).get_trace(*batch)
    model_trace = poutine.trace(poutine.replay(model, trace=guide_trace)).get_trace(*batch)
    guide_trace, model_trace = (
        prune_subsample_sites(guide_trace),
        prune_subsample_sites(model_trace),
    )
    _check_match(model_trace, guide_trace)
    count = batch.x.shape[0]
    model_trace.compute_log_prob()
    guide_trace.compute_log_prob()
    observed, latent = model_trace.observation_nodes, model_trace.stochastic_nodes
    return _Terms(
        _total(model_trace, observed, count),
        _total(guide_trace, guide_trace.stochastic_nodes + guide_trace.observation_nodes, count)
        - _total(model_trace, latent, count),
    )


def _check_match(model_trace: Trace, guide_trace: Trace) -> None:
    """Every latent site must be in both; a site of the guide alone must be marked auxiliary."""
    if not model_trace.observation_nodes:
        raise ValueError(
            "the model must observe x, pyro.sample(..., obs=x), and has no observed site. Are "
            "model and guide in each other's place?"
        )
    inferred = {
        name
        for name in guide_trace.stochastic_nodes
        if not (guide_trace.nodes[name]["infer"] or {}).get("is_auxiliary")
    }
    odd = set(model_trace.stochastic_nodes) ^ inferred
    if odd:
        raise ValueError(
            f"sites {sorted(odd)} are in only one of model and guide: there is no bound. "
            f"The model's latent sites are {sorted(model_trace.stochastic_nodes)}, "
            f"the guide's {sorted(inferred)}"
        )


def _total(trace: Trace, names: list[str], count: int) -> Tensor:
    """Log density of the named sites of each sequence, `(count,)`."""
    total = torch.zeros(count, dtype=torch.float64)
    for name in names:
        site = trace.nodes[name]
        if not isinstance(site["scale"], float | int) or site["scale"] != 1:
            raise ValueError(
                f"site '{name}' is scaled: a weighted objective is no bound. Evaluate without "
                "poutine.scale, site weights and subsampling"
            )
        value = site["log_prob"]
        if value.dim() == 0 or value.shape[-1] != count:
            raise ValueError(
                f"site '{name}' must have one log density per sequence, ({count},); got shape "
                f"{tuple(value.shape)}. Sample it in pyro.plate('sequences', batch, dim=-1)"
            )
        total = total + value.reshape(-1, count).cpu().double().sum(0)
    return total
