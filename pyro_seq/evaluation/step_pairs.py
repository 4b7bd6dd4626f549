"""Step models and their filtering guides in one pass: terms of every step, without gradient."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from pyro import poutine
from torch import Tensor, nn
from torch.nn.functional import pad

from pyro_seq.data import Batch
from pyro_seq.evaluation.context import evaluating, place
from pyro_seq.guides.filtering import FilteringGuide
from pyro_seq.inference.filtering import filter_sequences, start
from pyro_seq.inference.particles import filter_particles
from pyro_seq.models.step_model import StepModel
from pyro_seq.ops.trees import map_tensors

__all__ = ["StepTerms", "as_step_pair", "particle_terms", "step_terms"]


class StepTerms(NamedTuple):
    """Log likelihoods and divergences at draws, `(draws, sequences, time)` float64 on the CPU."""

    log_likelihood: Tensor
    divergence: Tensor


def as_step_pair(
    model: nn.Module, guide: nn.Module
) -> tuple[StepModel, FilteringGuide] | tuple[()]:
    """The pair if it can run in one pass, else nothing."""
    if isinstance(model, StepModel) and isinstance(guide, FilteringGuide):
        return model, guide
    return ()


def step_terms(
    model: StepModel,
    guide: FilteringGuide,
    part: Batch,
    draws: int,
    chunk: int,
    analytic: bool,
) -> StepTerms:
    """Terms of every step at each draw, as many draws at once as there is room for."""
    placed, time = _prepared(model, guide, part), part.x.shape[1]
    passes = []
    for count in _shares(draws, max(1, chunk // part.x.shape[0])):
        terms = filter_sequences(guide, *placed, particles=count, analytic=analytic)
        both = (terms.log_likelihood, terms.divergence)
        passes.append([pad(t.movedim(0, -1).double(), (0, time - len(t))).cpu() for t in both])
    return StepTerms(*(torch.cat(column) for column in zip(*passes, strict=True)))


def particle_terms(
    model: StepModel,
    guide: FilteringGuide,
    part: Batch,
    particles: int,
    resample_below: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """A particle filter's log evidence, and its log likelihoods and divergences in mean.

    Each `(sequences,)`, float64 on the CPU.
    """
    placed = _prepared(model, guide, part)
    found = filter_particles(guide, *placed, particles=particles, resample_below=resample_below)
    likelihood, divergence = (
        term.mean(1).sum(0) for term in (found.terms.log_likelihood, found.terms.divergence)
    )
    evidence, likelihood, divergence = (
        value.double().cpu() for value in (found.log_evidence, likelihood, divergence)
    )
    return evidence, likelihood, divergence


def _prepared(model: StepModel, guide: FilteringGuide, part: Batch) -> Batch:
    """The batch as the pair takes it, after all checks."""
    start(model, guide)
    _check_unscaled(model, part)
    return _trimmed(place(model, part))


def _shares(total: int, room: int) -> Iterator[int]:
    """The total in parts of at most `room`."""
    for begin in range(0, total, room):
        yield min(room, total - begin)


def _trimmed(batch: Batch) -> Batch:
    """Without the steps that are padding in every sequence."""
    if batch.mask is None:
        return batch
    seen = batch.mask.any(0).nonzero()
    last = int(seen[-1]) + 1 if len(seen) else 1
    return map_tensors(lambda part: part[:, :last], batch)


def _check_unscaled(model: StepModel, batch: Batch) -> None:
    """Raises a ValueError where a site of the step is scaled: its objective is no bound."""
    with evaluating(model, seed=0):
        first = place(model, map_tensors(lambda part: part[:1, :1], batch))
        trace = poutine.trace(model).get_trace(*first)
    for name, site in trace.nodes.items():
        scale = site.get("scale", 1.0)
        if not isinstance(scale, float | int) or scale != 1:
            raise ValueError(
                f"site '{name.removesuffix('_1')}' is scaled: a weighted objective is no bound. "
                "Evaluate without poutine.scale and subsampling"
            )
